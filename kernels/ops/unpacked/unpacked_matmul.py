"""y = x W^T for many tokens on Hopper: a matrix is unpacked to float16 once, and all tokens are multiplied by that.

The float16 numbers are those that the other kernels make in registers, and they are added in the same order: the same
bits. What is unpacked lies in scratch memory until the product is done.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kernels.ops.matmul_params import Epilogue, Product, TiledParams, tiled_params
from kernels.ops.matmul_tuning import shaped_as
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_constants import declare_constants, declare_traits
from kernels.runtime.cuda_struct import CudaStruct, Int32, Pointer
from kernels.runtime.gpu_spec import GpuSpec
from kernels.runtime.launcher import Context
from kernels.runtime.tma import TensorMap, tensor_map
from kernels.weights.formats import CHUNK
from kernels.weights.half_copy import PADDED_ROWS, can_unpack, half_bytes, half_shape, unpack
from kernels.weights.packed import PackedMatrix

TILE_ROWS = PADDED_ROWS  # outputs of a block
SLICE_TOKENS = 32  # whose outputs the copy engine stores at once
STORE_BYTES = 12 << 10  # of shared memory for the outputs of a warpgroup: those of a gated tile of 192 tokens
SUMMING_SIZES = (128, 160, 192)
"""Tokens of the tiles of matmul_unpacked_N whose blocks can add up partitions."""
LARGEST_SIZE = 256
"""Tokens of a tile for matrices of one partition."""

MOST_BYTES = 256 << 20
"""Of a matrix that is unpacked; larger ones are left to matmul_tiled_N."""

_GENERIC_FORMAT = "F16"  # matmul_unpacked.cu is the same for all formats without `has_row_base`
_GROUP_BYTES = 16 << 20  # of unpacked weights that take turns with each tile of tokens, and stay in the L2 cache
_SM_BYTES = 227 * 1024
_ALIGNMENT, _BARRIER_BYTES = 1024, 256


class UnpackedParams(CudaStruct, source="matmul/matmul_unpacked"):
    """What matmul_unpacked_N is given."""

    tiled: TiledParams
    weights: Pointer  # [chunks, rows in `TILE_ROWS`, CHUNK] float16, swizzled
    unit_chunks: Int32  # of the matrix's format
    group_tiles: Int32  # tiles of outputs that take turns with each tile of tokens
    x_map: TensorMap  # of x, boxes of 64 columns by the tokens of a tile
    out_map: TensorMap  # of the product's columns of the output, boxes as `_out_map` has them


class UnpackedShape(NamedTuple):
    """How matmul_unpacked_N is launched."""

    size: int  # tokens of a tile
    estimated_us: float  # with unpacking, unless the matrix has a copy


class UnpackedRing(NamedTuple):
    """What the shared memory of a block of matmul_unpacked_N holds."""

    stages: int  # chunks of x and of weights
    num_bytes: int


def variants() -> list[Variant]:
    """What of matmul_unpacked.cu is compiled."""
    return [("matmul/matmul_unpacked", {"FORMAT": _GENERIC_FORMAT, "EPILOGUE": kind.name}) for kind in Epilogue]


@lru_cache
def unpacked_ring(size: int) -> UnpackedRing:
    """As many stages as fit."""
    rest = _ALIGNMENT + _BARRIER_BYTES + 2 * STORE_BYTES
    stage_bytes = (size + TILE_ROWS) * CHUNK * 2
    stages = (_SM_BYTES - rest) // stage_bytes
    return UnpackedRing(stages, rest + stages * stage_bytes)


# Microseconds, fitted to ten matrices of real models and 2,048 and 8,192 tokens on an H200.
_CHUNK_US = {128: 0.47, 160: 0.52, 192: 0.59, 256: 0.66}  # of 64 columns of a tile
_FINISH_US = {128: 1.1, 160: 1.9, 192: 2.4, 256: 2.8}  # of a tile
_UNPACK_US, _UNPACKED_BYTES_PER_US = 2.0, 2.7e6
# The same of several partitions on a copy, of fewer tokens, fitted to nine matrices: within 5 % on average.
_FEWER_TOKENS = 1024
_COPIED_START_US, _COPIED_BYTES_PER_US = 3.25, 44e6  # the latter of weights
_COPIED_CHUNK_US = {128: 0.246, 160: 0.26, 192: 0.251}
_COPIED_SHARED_US = {128: 0.127, 160: 0.264, 192: 0.337}  # more if all SMs have a tile
_COPIED_FINISH_US = {128: 1.2, 160: 0.63, 192: 0.64}


def is_suitable(gpu: GpuSpec, product: Product) -> bool:
    """Whether `multiply_unpacked` can make the product."""
    matrix = product.matrix
    return (
        can_unpack(gpu, matrix)
        and (matrix.half_copy is not None or half_bytes(matrix) <= MOST_BYTES)
        and product.can_store(16)  # as the copy engine does
    )


def unpacked_shape(gpu: GpuSpec, matrix: PackedMatrix, num_tokens: int, *, copied: bool | None = None) -> UnpackedShape:
    """The one that takes least time; ``copied``: if the matrix had a copy, or had none."""
    copied = matrix.half_copy is not None if copied is None else copied
    num_chunks = half_shape(matrix)[0]
    return _shape(gpu, matrix.num_rows, num_chunks, matrix.num_partitions, shaped_as(num_tokens), copied)


@lru_cache(4096)
def _shape(
    gpu: GpuSpec, num_rows: int, num_chunks: int, num_partitions: int, num_tokens: int, copied: bool
) -> UnpackedShape:
    row_tiles = -(-num_rows // TILE_ROWS)
    num_bytes = row_tiles * TILE_ROWS * num_chunks * CHUNK * 2

    def estimate(size: int) -> float:
        rounds = row_tiles * -(-num_tokens // size) / gpu.num_sms
        whole_rounds = math.ceil(rounds)
        if copied and num_partitions > 1 and num_tokens <= _FEWER_TOKENS:
            chunks_us = num_chunks * (whole_rounds * _COPIED_CHUNK_US[size] + rounds * _COPIED_SHARED_US[size])
            weights_us = _COPIED_START_US + num_bytes / _COPIED_BYTES_PER_US
            return weights_us + chunks_us + whole_rounds * _COPIED_FINISH_US[size]
        unpack_us = 0.0 if copied else _UNPACK_US + num_bytes / _UNPACKED_BYTES_PER_US
        return unpack_us + whole_rounds * (num_chunks * _CHUNK_US[size] + _FINISH_US[size])

    sizes = [*SUMMING_SIZES, LARGEST_SIZE] if num_partitions == 1 else SUMMING_SIZES
    return min((UnpackedShape(size, estimate(size)) for size in sizes), key=lambda shape: shape.estimated_us)


def multiply_unpacked(context: Context, product: Product, size: int) -> None:
    """In tiles of ``size`` tokens, one of `unpacked_shape`'s."""
    x, matrix, num_tokens = product.x, product.matrix, product.out.shape[0]
    num_chunks = matrix.num_units * matrix.format.unit_chunks
    row_tiles = -(-matrix.num_rows // TILE_ROWS)
    weights = matrix.half_copy
    if weights is None:
        weights = context.scratch(half_shape(matrix), np.float16)
        unpack(context, matrix, weights)
    params = UnpackedParams(
        tiled=tiled_params(product),
        weights=weights.pointer,
        unit_chunks=matrix.format.unit_chunks,
        group_tiles=max(4, _GROUP_BYTES // (TILE_ROWS * num_chunks * CHUNK * 2)),
        x_map=tensor_map(x, (size, CHUNK)),
        out_map=_out_map(product),
    )
    context.launch(
        "matmul/matmul_unpacked",
        f"matmul_unpacked_{size}",
        min(context.gpu.num_sms, row_tiles * -(-num_tokens // size)),
        384,
        params,
        shared_bytes=unpacked_ring(size).num_bytes,
        FORMAT=_GENERIC_FORMAT,
        EPILOGUE=product.epilogue.name,
    )


def _out_map(product: Product) -> bytes:
    """Boxes of 128 bytes by the tokens of a slice; of gated activations half as wide."""
    is_gated, element_bytes = product.epilogue.is_gated, product.out.dtype.itemsize
    box = SLICE_TOKENS, (64 if is_gated else 128) // element_bytes
    num_columns = product.matrix.num_rows // (2 if is_gated else 1)
    return tensor_map(product.out, box, columns=range(product.column, product.column + num_columns))


declare_constants(
    "matmul/matmul_unpacked.cuh",
    SLICE_TOKENS=SLICE_TOKENS,
    STORE_BYTES=STORE_BYTES,
    SUMMING_TOKENS=SUMMING_SIZES[-1],
)
declare_traits(
    "matmul/matmul_unpacked.cuh",
    "UnpackedRing",
    {(size,): unpacked_ring(size)._asdict() for size in (*SUMMING_SIZES, LARGEST_SIZE)},
)
