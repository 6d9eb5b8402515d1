"""y = x W^T for many tokens on Hopper, on a float16 copy of the weights, in tiles of so many outputs as share well.

The float16 numbers are those that the other kernels make in registers, and they are added in the same order: the same
bits.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from kernels.ops.matmul_params import Product, TiledParams, tiled_params
from kernels.ops.matmul_tuning import shaped_as
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_constants import declare_traits
from kernels.runtime.cuda_struct import CudaStruct, Int32, Pointer
from kernels.runtime.gpu_spec import GpuSpec
from kernels.runtime.launcher import Context
from kernels.runtime.tma import TensorMap, tensor_map
from kernels.weights.formats import CHUNK
from kernels.weights.half_copy import half_bytes, half_shape
from kernels.weights.packed import PackedMatrix

TILE_TOKENS = 128
SIZES = (32, 48, 64, 96, 144, 160, 192)
"""Outputs of a tile."""
LEAST_TOKENS, MOST_TOKENS = 65, 1024
"""Fewer take no less time than on packed weights, more no less than in `matmul_unpacked_N`."""

_GENERIC_FORMAT = "F16"  # matmul_copied.cu is the same for all formats without `has_row_base`
_SM_BYTES = 227 * 1024
_ALIGNMENT, _BARRIER_BYTES = 1024, 256
_MOST_STAGES = 8


class CopiedParams(CudaStruct, source="matmul/matmul_copied"):
    """What matmul_copied is given."""

    tiled: TiledParams
    weights: Pointer  # [chunks, padded_rows, CHUNK] float16, swizzled
    padded_rows: Int32
    unit_chunks: Int32  # of the matrix's format
    x_map: TensorMap  # of x, boxes of 64 columns by `TILE_TOKENS`


class CopiedShape(NamedTuple):
    """How matmul_copied is launched."""

    size: int  # outputs of a tile
    estimated_us: float


class CopiedRing(NamedTuple):
    """What the shared memory of a block holds."""

    stages: int  # chunks of x and of weights
    num_bytes: int


def variants() -> list[Variant]:
    """What of matmul_copied.cu is compiled."""
    return [("matmul/matmul_copied", {"FORMAT": _GENERIC_FORMAT, "ROWS": size}) for size in SIZES]


@lru_cache
def copied_ring(size: int) -> CopiedRing:
    """As many stages as fit."""
    rest = _ALIGNMENT + _BARRIER_BYTES
    stage_bytes = (size + TILE_TOKENS) * CHUNK * 2
    stages = min(_MOST_STAGES, (_SM_BYTES - rest) // stage_bytes)
    return CopiedRing(stages, rest + stages * stage_bytes)


# Microseconds, fitted to ten matrices of real models and 128 to 1,024 tokens on an H200: within 5 % of those that are
# chosen, on average.
_START_US, _BYTES_PER_US = 2.4, 14e6  # the latter of weights
_CHUNK_US = {32: 0.18, 48: 0.195, 64: 0.195, 96: 0.25, 144: 0.37, 160: 0.43, 192: 0.41}  # of 64 columns of a tile
_SHARED_US = {32: 0.05, 48: 0.08, 64: 0.08, 96: 0.14, 144: 0.07, 160: 0.045, 192: 0.07}  # more if all SMs have one
_FINISH_US = {32: 0.4, 48: 0.5, 64: 0.9, 96: 0.85, 144: 1.0, 160: 0.8, 192: 6.5}  # of a tile; 192: if it is added


def is_suitable(gpu: GpuSpec, product: Product) -> bool:
    """Whether `multiply_copied` can make the product: outputs are stored 16 bytes at a time."""
    matrix = product.matrix
    return (
        gpu.has_wgmma
        and matrix.half_copy is not None
        and matrix.num_partitions > 1
        and LEAST_TOKENS <= product.out.shape[0] <= MOST_TOKENS
        and product.can_store(16)
        and matrix.num_rows % 8 == 0
    )


def copied_shape(gpu: GpuSpec, matrix: PackedMatrix, num_tokens: int) -> CopiedShape:
    """The one that takes least time."""
    num_chunks = half_shape(matrix)[0]
    return _shape(gpu, matrix.num_rows, num_chunks, half_bytes(matrix), shaped_as(num_tokens))


@lru_cache(4096)
def _shape(gpu: GpuSpec, num_rows: int, num_chunks: int, weight_bytes: int, num_tokens: int) -> CopiedShape:
    def estimate(size: int) -> float:
        rounds = -(-num_rows // size) * -(-num_tokens // TILE_TOKENS) / gpu.num_sms
        whole_rounds = math.ceil(rounds)
        chunks_us = num_chunks * (whole_rounds * _CHUNK_US[size] + rounds * _SHARED_US[size])
        return _START_US + weight_bytes / _BYTES_PER_US + chunks_us + whole_rounds * _FINISH_US[size]

    return min((CopiedShape(size, estimate(size)) for size in SIZES), key=lambda shape: shape.estimated_us)


def multiply_copied(context: Context, product: Product, size: int) -> None:
    """In tiles of ``size`` outputs; the matrix has a copy."""
    matrix, num_tokens = product.matrix, product.out.shape[0]
    weights = matrix.half_copy
    assert weights is not None
    _, padded_rows, _ = weights.shape
    params = CopiedParams(
        tiled=tiled_params(product),
        weights=weights.pointer,
        padded_rows=padded_rows,
        unit_chunks=matrix.format.unit_chunks,
        x_map=tensor_map(product.x, (TILE_TOKENS, CHUNK)),
    )
    context.launch(
        "matmul/matmul_copied",
        "matmul_copied",
        min(context.gpu.num_sms, -(-matrix.num_rows // size) * -(-num_tokens // TILE_TOKENS)),
        384,
        params,
        shared_bytes=copied_ring(size).num_bytes,
        FORMAT=_GENERIC_FORMAT,
        ROWS=size,
    )


declare_traits("matmul/matmul_copied.cuh", "CopiedRing", {(size,): copied_ring(size)._asdict() for size in SIZES})
