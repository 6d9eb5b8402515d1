"""Products of many tokens with experts in MXFP4 on Hopper, in tiles of one expert each, by blocks that stay.

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
from kernels.runtime.cuda_struct import CudaStruct, FieldType
from kernels.runtime.driver import MAP_ALIGNMENT, MAP_BYTES
from kernels.runtime.gpu_spec import GpuSpec
from kernels.runtime.launcher import Context
from kernels.runtime.tma import tensor_map
from kernels.weights.formats import CHUNK, FORMATS
from kernels.weights.packed import PackedMatrix

FORMAT = FORMATS["MXFP4"]
MOST_WIDTHS = 8
GROUPS = 2
"""Of 64 outputs each, that a block computes."""


class GroupedSize(NamedTuple):
    """A kernel for tiles of up to so many tokens."""

    step: int  # tiles are multiplied as wide as multiples of this
    least: int  # and no narrower
    blocks: int  # of an SM
    chunks: int  # of 64 columns between two barriers
    most_tokens: float  # that experts have on average


GROUPED_SIZES = {
    64: GroupedSize(step=16, least=16, blocks=2, chunks=2, most_tokens=40),
    160: GroupedSize(step=32, least=32, blocks=1, chunks=1, most_tokens=192),
    256: GroupedSize(step=32, least=64, blocks=1, chunks=1, most_tokens=math.inf),
}
"""By the tokens of a tile. Which takes least time was measured with GPT-OSS's experts on an H200, unevenly chosen."""
MOST_SUMMED = 160
"""Tokens of the tiles of matrices of several partitions."""
LEAST_TOKENS = 20
"""Of an expert on average: for fewer, matmul_tiled_N takes less time."""

_SOURCE = "matmul/matmul_grouped"
_REGISTERS = {1: 240, 2: 104}  # of a thread that multiplies, by the blocks of an SM
_STORE_BYTES = 2 * 16 * (64 + 4) * 4  # of shared memory for the outputs of a group
_SM_BYTES = 226 * 1024
_ALIGNMENT, _BARRIER_BYTES = 1024, 256
_MOST_STAGES = 12


class GroupedParams(CudaStruct, source=_SOURCE):
    """What matmul_grouped is given."""

    tiled: TiledParams
    x_maps: Annotated[bytes, FieldType(f"{MOST_WIDTHS * MAP_BYTES}s", MOST_WIDTHS * MAP_BYTES, MAP_ALIGNMENT, "")]


class GroupedRing(NamedTuple):
    """How tiles are multiplied, and what the shared memory of a block of matmul_grouped holds."""

    step: int
    least: int
    chunks: int  # of a stage
    stages: int  # of x and of weights
    num_bytes: int
    blocks: int  # of an SM
    registers: int


@lru_cache
def grouped_ring(size: int) -> GroupedRing:
    """As many stages as fit."""
    step, least, blocks, chunks, _ = GROUPED_SIZES[size]
    rest = _ALIGNMENT + _BARRIER_BYTES + GROUPS * _STORE_BYTES
    stage_bytes = chunks * (GROUPS * 4 * FORMAT.unit_bytes + size * CHUNK * 2)
    stages = min(_MOST_STAGES, (_SM_BYTES // blocks - rest) // stage_bytes)
    return GroupedRing(step, least, chunks, stages, rest + stages * stage_bytes, blocks, _REGISTERS[blocks])


def variants() -> list[Variant]:
    """What of matmul_grouped.cu is compiled."""
    return [
        (_SOURCE, {"FORMAT": FORMAT.name, "SIZE": size, "HAS_PARTITIONS": has_partitions})
        for size in GROUPED_SIZES
        for has_partitions in ((0, 1) if size <= MOST_SUMMED else (0,))
    ]


def can_group(gpu: GpuSpec, *matrices: PackedMatrix) -> bool:
    """Whether there are kernels for all of ``matrices``."""
    return gpu.has_wgmma and all(matrix.format is FORMAT and matrix.num_rows % 16 == 0 for matrix in matrices)


def is_suitable(gpu: GpuSpec, product: Product, size: int) -> bool:
    """Whether `multiply_grouped` can make the product in tiles of ``size`` tokens."""
    matrix, alignment = product.matrix, 16 // product.out.dtype.itemsize  # of what is stored at once
    return (
        can_group(gpu, matrix)
        and size in GROUPED_SIZES
        and (size <= MOST_SUMMED or matrix.num_partitions == 1)
        and (product.epilogue.is_gated or product.epilogue is Epilogue.STORE_FLOAT)
        and not any(number % alignment for number in (product.column, product.out.shape[1]))
    )


def grouped_size(num_partitions: int, num_tokens: int, num_used: int, num_experts: int) -> int | None:
    """Tokens of the tiles that take least time for experts of ``num_tokens`` tokens; None: those of other kernels."""
    expert_tokens = shaped_as(num_tokens) * num_used / num_experts
    if expert_tokens < LEAST_TOKENS:
        return None
    sizes = [size for size in GROUPED_SIZES if num_partitions == 1 or size <= MOST_SUMMED]
    return next((size for size in sizes if expert_tokens <= GROUPED_SIZES[size].most_tokens), sizes[-1])


def multiply_grouped(context: Context, product: Product, tiles: ExpertTiles) -> None:
    """The product in ``tiles``."""
    matrix, size = product.matrix, tiles.size
    assert is_suitable(context.gpu, product, size), f"{product} in tiles of {size}"
    ring = grouped_ring(size)
    widths = range(ring.step, size + 1, ring.step)
    x_maps = b"".join(tensor_map(product.x, (width, CHUNK)) for width in widths)
    context.launch(
        _SOURCE,
        "matmul_grouped",
        min(ring.blocks * context.gpu.num_sms, -(-matrix.num_rows // (64 * GROUPS)) * tiles.entries.shape[0]),
        128 * (1 + GROUPS),
        GroupedParams(tiled=tiled_params(product, tiles), x_maps=x_maps.ljust(MOST_WIDTHS * MAP_BYTES, b"\0")),
        shared_bytes=ring.num_bytes,
        FORMAT=FORMAT.name,
        SIZE=size,
        HAS_PARTITIONS=int(matrix.num_partitions > 1),
    )


declare_constants("matmul/matmul_grouped.cu", MOST_WIDTHS=MOST_WIDTHS)
declare_constants("matmul/matmul_grouped.cuh", GROUPS=GROUPS, STORE_BYTES=_STORE_BYTES)
declare_traits(
    "matmul/matmul_grouped.cuh",
    "GroupedRing",
    {(size,): grouped_ring(size)._asdict() for size in GROUPED_SIZES},
)
