"""y = x W^T on Hopper for few outputs: the warpgroups of a block have partitions of a tile at once (sliced-K).

Sums are added in the order that all kernels have: the same bits.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from kernels.ops.matmul_params import Product, hopper_params, tiled_params
from kernels.ops.matmul_tuning import shaped_as
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_constants import declare_constants, declare_traits
from kernels.runtime.gpu_spec import GpuSpec
from kernels.runtime.launcher import Context
from kernels.weights.formats import CHUNK, FORMATS, Format
from kernels.weights.packed import BLOCK_ROWS, PackedMatrix, packed_bytes

SLICED_FORMATS = ("Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
"""What files of the mixtures Q4_K_M to Q8_0 hold."""
SIZES = (32, 48, 64, 80)
"""Tokens of a tile."""
GROUPS = 4  # warpgroups of a block

_SM_BYTES = 227 * 1024
_ALIGNMENT, _BARRIER_BYTES = 1024, 768
_LEAST_STAGES, _MOST_STAGES = 3, 8  # of x


class SlicedKRing(NamedTuple):
    """What a warpgroup has of the shared memory of a block of matmul_sliced_k_N."""

    stages: int  # chunks of x
    weight_stages: int  # units of weights
    num_bytes: int  # of the block


class SlicedKShape(NamedTuple):
    """How matmul_sliced_k_N is launched."""

    size: int  # tokens of a tile
    estimated_us: float


def variants() -> list[Variant]:
    """What of matmul_sliced_k.cu is compiled."""
    return [("matmul/matmul_sliced_k", {"FORMAT": name}) for name in SLICED_FORMATS]


@lru_cache
def sliced_k_ring(format_: Format, size: int) -> SlicedKRing:
    """As many stages of x as fit; none if these are too few."""
    weight_stages = 2 if format_.unit_chunks > 1 else 4
    rest = _ALIGNMENT + _BARRIER_BYTES + size * BLOCK_ROWS * 4
    rest += GROUPS * weight_stages * BLOCK_ROWS // 16 * format_.unit_bytes
    stage_bytes = GROUPS * size * CHUNK * 2
    stages = min(_MOST_STAGES, (_SM_BYTES - rest) // stage_bytes)
    return SlicedKRing(stages, weight_stages, rest + stages * stage_bytes if stages >= _LEAST_STAGES else 0)


@lru_cache
def sizes_of(format_: Format) -> tuple[int, ...]:
    """Tokens of the tiles that shared memory has room for."""
    return tuple(size for size in SIZES if sliced_k_ring(format_, size).num_bytes)


# Microseconds, fitted to eight matrices of real models and 64 to 512 tokens on an H200. (The start takes 0.7 more; the
# estimates for whole tiles in `matmul_tuning` are too low by about that.)
_START_US, _STORE_US = 1.0, 0.012  # of a block, and of each token of its tile
_CHUNK_US = {32: 0.48, 48: 0.53, 64: 0.57, 80: 0.62}  # of 64 columns of each warpgroup's partition
_TOTAL_US = {32: 0.58, 48: 0.8, 64: 0.85, 80: 1.0}  # of each partition, to add it to the total
_CACHE_BYTES_PER_US = 5.1e6  # of x and weights that all blocks read from the L2 cache


def is_suitable(gpu: GpuSpec, product: Product) -> bool:
    """Whether `multiply_sliced_k` can make the product: outputs are stored four at a time."""
    matrix = product.matrix
    return (
        gpu.has_wgmma
        and matrix.format.name in SLICED_FORMATS
        and matrix.num_experts == 1
        and matrix.num_partitions > 1
        and not matrix.gated
        and product.can_store(4 * product.out.dtype.itemsize)
    )


def sliced_k_shape(gpu: GpuSpec, matrix: PackedMatrix, num_tokens: int) -> SlicedKShape:
    """The one that takes least time."""
    return _shape(gpu, matrix.format, matrix.num_rows, matrix.num_chunks, matrix.num_partitions, shaped_as(num_tokens))


@lru_cache(4096)
def _shape(
    gpu: GpuSpec, format_: Format, num_rows: int, num_chunks: int, num_partitions: int, num_tokens: int
) -> SlicedKShape:
    row_tiles, rounds = -(-num_rows // BLOCK_ROWS), -(-num_partitions // GROUPS)
    weight_bytes = packed_bytes(format_, num_rows, num_chunks * CHUNK)

    def estimate(size: int) -> float:
        token_tiles = -(-num_tokens // size)
        round_us = num_chunks / num_partitions * _CHUNK_US[size] + _TOTAL_US[size]
        us = -(-row_tiles * token_tiles // gpu.num_sms) * (_START_US + rounds * round_us + size * _STORE_US)
        read_bytes = row_tiles * num_tokens * num_chunks * CHUNK * 2 + token_tiles * weight_bytes
        return max(us, read_bytes / _CACHE_BYTES_PER_US)

    shapes = (SlicedKShape(size, estimate(size)) for size in sizes_of(format_))
    return min(shapes, key=lambda shape: shape.estimated_us)


def multiply_sliced_k(context: Context, product: Product, size: int) -> None:
    """In tiles of ``size`` tokens."""
    matrix, num_tokens = product.matrix, product.out.shape[0]
    grid = (-(-matrix.num_rows // BLOCK_ROWS), -(-num_tokens // size), 1)
    context.launch(
        "matmul/matmul_sliced_k",
        f"matmul_sliced_k_{size}",
        grid,
        (GROUPS + 1) * 128,
        hopper_params(tiled_params(product), product.x, size),
        shared_bytes=context.gpu.spread(sliced_k_ring(matrix.format, size).num_bytes, math.prod(grid)),
        FORMAT=matrix.format.name,
    )


declare_constants("matmul/matmul_sliced_k.cuh", SLICED_GROUPS=GROUPS)
declare_traits(
    "matmul/matmul_sliced_k.cuh",
    "SlicedKRing",
    {(name, size): sliced_k_ring(FORMATS[name], size)._asdict() for name in SLICED_FORMATS for size in SIZES},
)
