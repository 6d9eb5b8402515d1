"""Products of experts in MXFP4 and K formats on Hopper: many tokens in tiles of one expert each, by blocks that stay.

The same bits as `kernels.ops.matmul.multiply_tiled` gives.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, NamedTuple

from kernels.ops.matmul_params import Epilogue, ExpertTiles, Product, TiledParams, tiled_params
from kernels.ops.matmul_tuning import shaped_as
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_constants import declare_constants, declare_traits
from kernels.runtime.cuda_struct import CudaStruct, FieldType, Int32
from kernels.runtime.driver import MAP_ALIGNMENT, MAP_BYTES
from kernels.runtime.gpu_spec import GpuSpec
from kernels.runtime.launcher import Context
from kernels.runtime.tma import tensor_map
from kernels.weights.formats import CHUNK, FORMATS, Format
from kernels.weights.packed import PackedMatrix

MOST_WIDTHS = 8


class GroupedSize(NamedTuple):
    """A kernel for tiles of up to so many tokens."""

    step: int  # tiles are multiplied as wide as multiples of this
    least: int  # and no narrower
    blocks: int  # of an SM
    groups: int  # of 64 outputs each, that a block computes
    chunks: int  # of 64 columns between two barriers


_MXFP4_SIZES = {
    64: GroupedSize(step=16, least=16, blocks=1, groups=4, chunks=2),
    96: GroupedSize(step=16, least=16, blocks=1, groups=3, chunks=2),
    160: GroupedSize(step=32, least=32, blocks=1, groups=2, chunks=2),
    256: GroupedSize(step=32, least=64, blocks=1, groups=2, chunks=1),
}
"""By the tokens of a tile."""
_MXFP4_SUMMED_SIZES = {
    64: GroupedSize(step=16, least=16, blocks=2, groups=2, chunks=2),
    96: GroupedSize(step=16, least=16, blocks=1, groups=3, chunks=2),
    160: GroupedSize(step=32, least=32, blocks=1, groups=2, chunks=2),
}
"""The same of matrices of several partitions."""
_MXFP4_MOST_TOKENS = {64: 24, 96: 96, 160: 192, 256: math.inf}
"""That experts have on average. It was measured with GPT-OSS's experts on an H200, unevenly chosen."""
_K_SIZES = {
    16: GroupedSize(step=16, least=16, blocks=2, groups=2, chunks=4),
    32: GroupedSize(step=16, least=16, blocks=2, groups=2, chunks=4),
}
LEAST_TOKENS = 8
"""Of an expert on average: for fewer, matmul_tiled_N takes less time."""

_SOURCE = "matmul/matmul_grouped"
_REGISTERS = {(1, 2): 240, (1, 3): 160, (1, 4): 112, (2, 2): 104}
"""Of a thread that multiplies, by blocks of an SM and groups."""
_STORE_TOKENS = {2: 16, 3: 8, 4: 8}  # whose float32 outputs a group stores together, by the groups of an SM
_SM_BYTES = 226 * 1024
_BARRIER_BYTES = 256
_MOST_STAGES = 12


class GroupedParams(CudaStruct, source=_SOURCE):
    """What matmul_grouped is given."""

    tiled: TiledParams
    x_maps: Annotated[bytes, FieldType(f"{MOST_WIDTHS * MAP_BYTES}s", MOST_WIDTHS * MAP_BYTES, MAP_ALIGNMENT, "")]
    follows_plan: Int32


class GroupedRing(NamedTuple):
    """How tiles are multiplied, and what the shared memory of a block of matmul_grouped holds."""

    step: int
    least: int
    chunks: int  # of a stage
    stages: int  # of x and of weights
    num_bytes: int
    store_tokens: int
    store_bytes: int  # for the outputs of a group
    blocks: int  # of an SM
    groups: int
    registers: int


def sizes_of(format_: Format, num_partitions: int) -> dict[int, GroupedSize]:
    """By the tokens of a tile, the kernels for such weights."""
    if format_.has_exponents:
        return _MXFP4_SIZES if num_partitions == 1 else _MXFP4_SUMMED_SIZES
    return _K_SIZES if format_.is_k else {}


def _has_partitions(format_: Format, num_partitions: int) -> int:
    """Whether a kernel is for several partitions; of K formats each is."""
    return int(num_partitions > 1 or not format_.has_exponents)


@lru_cache
def grouped_ring(format_: Format, num_partitions: int, size: int) -> GroupedRing:
    """As many stages as fit."""
    step, least, blocks, groups, chunks = sizes_of(format_, num_partitions)[size]
    store_tokens = _STORE_TOKENS[blocks * groups]
    store_bytes = 2 * store_tokens * (64 + 4) * 4
    rest = _BARRIER_BYTES + groups * store_bytes
    weight_bytes = chunks // format_.unit_chunks * groups * 4 * format_.unit_bytes
    stage_bytes = weight_bytes + chunks * size * CHUNK * 2
    stages = min(_MOST_STAGES, (_SM_BYTES // blocks - rest) // stage_bytes)
    return GroupedRing(
        step=step,
        least=least,
        chunks=chunks,
        stages=stages,
        num_bytes=rest + stages * stage_bytes,
        store_tokens=store_tokens,
        store_bytes=store_bytes,
        blocks=blocks,
        groups=groups,
        registers=_REGISTERS[blocks, groups],
    )


_RINGS = {
    (name, size, _has_partitions(each, num_partitions)): grouped_ring(each, num_partitions, size)
    for name, each in FORMATS.items()
    for num_partitions in (1, 2)
    for size in sizes_of(each, num_partitions)
}
"""By format, tokens of a tile, and whether a kernel is for several partitions."""


def variants() -> list[Variant]:
    """What of matmul_grouped.cu is compiled."""
    return [
        (_SOURCE, {"FORMAT": name, "SIZE": size, "HAS_PARTITIONS": has_partitions})
        for name, size, has_partitions in _RINGS
    ]


def is_suitable(gpu: GpuSpec, product: Product, size: int) -> bool:
    """Whether `multiply_grouped` can make the product in tiles of ``size`` tokens."""
    matrix = product.matrix
    return (
        gpu.has_wgmma
        and size in sizes_of(matrix.format, matrix.num_partitions)
        and matrix.num_rows % 16 == 0
        and (product.epilogue.is_gated or product.epilogue is Epilogue.STORE_FLOAT)
        and product.can_store(16)
    )


def grouped_size(gpu: GpuSpec, matrix: PackedMatrix, num_tokens: int, num_used: int) -> int | None:
    """Tokens of the tiles that take least time for experts of ``num_tokens`` tokens; None: `matmul_tuning` knows."""
    expert_tokens = shaped_as(num_tokens) * num_used / matrix.num_experts
    if not (gpu.has_wgmma and matrix.format.has_exponents and matrix.num_rows % 16 == 0):
        return None
    if expert_tokens < LEAST_TOKENS:
        return None
    sizes = sizes_of(matrix.format, matrix.num_partitions)
    return next((size for size in sizes if expert_tokens <= _MXFP4_MOST_TOKENS[size]), max(sizes))


def multiply_grouped(context: Context, product: Product, tiles: ExpertTiles, *, follows_plan: bool = True) -> None:
    """The product in ``tiles``; ``follows_plan``: the kernel launched before may have written these."""
    matrix, size = product.matrix, tiles.size
    assert is_suitable(context.gpu, product, size), f"{product} in tiles of {size}"
    ring = grouped_ring(matrix.format, matrix.num_partitions, size)
    widths = range(ring.step, size + 1, ring.step)
    x_maps = b"".join(tensor_map(product.x, (width, CHUNK)) for width in widths)
    context.launch(
        _SOURCE,
        "matmul_grouped",
        min(ring.blocks * context.gpu.num_sms, -(-matrix.num_rows // (64 * ring.groups)) * tiles.entries.shape[0]),
        128 * (1 + ring.groups),
        GroupedParams(
            tiled=tiled_params(product, tiles),
            x_maps=x_maps.ljust(MOST_WIDTHS * MAP_BYTES, b"\0"),
            follows_plan=follows_plan,
        ),
        shared_bytes=ring.num_bytes,
        FORMAT=matrix.format.name,
        SIZE=size,
        HAS_PARTITIONS=_has_partitions(matrix.format, matrix.num_partitions),
    )


declare_constants("matmul/matmul_grouped.cu", MOST_WIDTHS=MOST_WIDTHS)
declare_traits(
    "matmul/matmul_grouped.cuh", "GroupedRing", {of_kernel: ring._asdict() for of_kernel, ring in _RINGS.items()}
)
