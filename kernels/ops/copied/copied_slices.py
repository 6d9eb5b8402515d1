"""y = x W^T for hundreds of tokens and few outputs on Hopper, on a float16 copy of the weights (sliced-K).

The warpgroups of a block have partitions of a tile at once, and add them up in the order that all kernels have: the
same bits.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from kernels.ops.copied import copied_matmul
from kernels.ops.copied.copied_matmul import CopiedParams
from kernels.ops.matmul_params import Product, tiled_params
from kernels.ops.matmul_tuning import shaped_as
from kernels.runtime.cuda_constants import declare_constants
from kernels.runtime.gpu_spec import GpuSpec
from kernels.runtime.launcher import Context
from kernels.runtime.tma import tensor_map
from kernels.weights.formats import CHUNK
from kernels.weights.half_copy import half_shape
from kernels.weights.packed import PackedMatrix

SLICES = 4  # warpgroups of a block, which have every fourth partition each
SLICED_TOKENS = 64  # of a tile
SLICED_STAGES = 3  # chunks of x and of weights that each of them has
SLICED_SIZES = (32, 48, 64)
"""Outputs of a tile."""

_ALIGNMENT = 1024
_GENERIC_FORMAT = "F16"


class SlicedShape(NamedTuple):
    """How matmul_copied_sliced is launched."""

    size: int  # outputs of a tile
    estimated_us: float


def shared_bytes(size: int) -> int:
    """Shared memory of a block: stages, the total, and barriers."""
    stages = SLICES * SLICED_STAGES * (SLICED_TOKENS + size) * CHUNK * 2
    return _ALIGNMENT + stages + SLICED_TOKENS * size * 4 + 8 * SLICES * (1 + 2 * SLICED_STAGES)


# Microseconds, fitted to six matrices of real models and 80 to 512 tokens on an H200: within 4 % on average.
_START_US = {32: 0.8, 48: 2.2, 64: 2.7}
_CHUNK_US = {32: 0.23, 48: 0.385, 64: 0.46}  # of 64 columns of each warpgroup's partition
_TOTAL_US = {32: 1.06, 48: 0.09, 64: 0.0}  # of each partition, to add it to the total
_READ_US = {32: 0.012, 48: 0.03, 64: 0.031}  # of each MB of x and weights that all blocks read


def is_suitable(gpu: GpuSpec, product: Product) -> bool:
    """Whether `multiply_sliced_copy` can make the product, and an SM has no second tile, which takes too long."""
    num_tiles = -(-product.matrix.num_rows // SLICED_SIZES[-1]) * -(-product.out.shape[0] // SLICED_TOKENS)
    return copied_matmul.is_suitable(gpu, product) and not product.matrix.gated and num_tiles <= gpu.num_sms


def sliced_shape(gpu: GpuSpec, matrix: PackedMatrix, num_tokens: int) -> SlicedShape:
    """The one that takes least time."""
    num_chunks = half_shape(matrix)[0]
    return _shape(gpu, matrix.num_rows, num_chunks, matrix.num_partitions, shaped_as(num_tokens))


@lru_cache(4096)
def _shape(gpu: GpuSpec, num_rows: int, num_chunks: int, num_partitions: int, num_tokens: int) -> SlicedShape:
    own_partitions = -(-num_partitions // SLICES)

    def estimate(size: int) -> float:
        row_tiles, token_tiles = -(-num_rows // size), -(-num_tokens // SLICED_TOKENS)
        if row_tiles * token_tiles > gpu.num_sms:
            return math.inf
        own_us = num_chunks / num_partitions * _CHUNK_US[size] + _TOTAL_US[size]
        read_bytes = (row_tiles * num_tokens + token_tiles * num_rows) * num_chunks * CHUNK * 2
        return _START_US[size] + own_partitions * own_us + read_bytes / 1e6 * _READ_US[size]

    return min((SlicedShape(size, estimate(size)) for size in SLICED_SIZES), key=lambda shape: shape.estimated_us)


def multiply_sliced_copy(context: Context, product: Product, size: int) -> None:
    """In tiles of ``size`` outputs; the matrix has a copy."""
    matrix, num_tokens = product.matrix, product.out.shape[0]
    weights = matrix.half_copy
    assert weights is not None
    params = CopiedParams(
        tiled=tiled_params(product),
        weights=weights.pointer,
        padded_rows=weights.shape[1],
        unit_chunks=matrix.format.unit_chunks,
        x_map=tensor_map(product.x, (SLICED_TOKENS, CHUNK)),
    )
    context.launch(
        "matmul/matmul_copied",
        "matmul_copied_sliced",
        (-(-matrix.num_rows // size), -(-num_tokens // SLICED_TOKENS), 1),
        (SLICES + 1) * 128,
        params,
        shared_bytes=shared_bytes(size),
        FORMAT=_GENERIC_FORMAT,
        ROWS=size,
    )


declare_constants(
    "matmul/matmul_copied_slices.cuh", SLICES=SLICES, SLICED_STAGES=SLICED_STAGES, SLICED_TOKENS=SLICED_TOKENS
)
