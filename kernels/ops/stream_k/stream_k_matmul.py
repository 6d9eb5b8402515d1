"""y = x W^T on Hopper in tiles that are shared out evenly among as many blocks as run at once (stream-K).

Sums are added in the order that all kernels have: the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kernels.ops.matmul_params import Epilogue, HopperTiledParams, Product, hopper_params, tiled_params
from kernels.ops.matmul_tuning import BLOCK_OUTPUTS, LARGEST_SIZE, ring_bytes, shaped_as
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_constants import declare_constants
from kernels.runtime.cuda_struct import CudaStruct, Int32
from kernels.runtime.gpu_spec import GpuSpec
from kernels.runtime.launcher import Context
from kernels.weights.packed import PackedMatrix

FORMATS = ("Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
"""What files of the mixtures Q4_K_M to Q8_0 hold."""

CUT_SIZE = 128  # tokens of tiles that are cut into partitions
MAX_TOKENS = 1024  # up to which it was measured
MAX_BLOCKS = 256
CHAIN_PARTS = 8  # of a tile that has one partition


class StreamKParams(CudaStruct, source="matmul/matmul_stream_k"):
    """What matmul_stream_k_N is given."""

    hopper: HopperTiledParams
    parts_of_block: Int32
    num_places: Int32  # of a block for sums of a tile, in `partials`


class StreamKShape(NamedTuple):
    """How matmul_stream_k_N is launched."""

    size: int  # tokens of a tile
    num_blocks: int
    parts_of_block: int  # of tiles: partitions, units or whole ones
    num_places: int  # of a block, for sums of a tile
    estimated_us: float


def variants() -> list[Variant]:
    """What of matmul_stream_k.cu is compiled."""
    return [("matmul/matmul_stream_k", {"FORMAT": name}) for name in FORMATS]


# Microseconds, fitted to eighteen matrices of real models and 128 to 768 tokens on an H200: within 6 % on average. (The
# start takes 0.5 more; the estimates for whole tiles in `matmul_tuning` are too low by about that.)
_START_US = 0.4
_CHUNK_US = {CUT_SIZE: 0.407, LARGEST_SIZE: 0.683}  # of 64 columns of a tile
_STORE_US = {CUT_SIZE: 3.2, LARGEST_SIZE: 6.2}  # of a tile
_LEFT_US, _ADDED_US = 1.7, 0.5  # of a partition of CUT_SIZE tokens: sums to leave, and to add what another block left
_TOTAL_US, _CHAIN_US = 2.8, 4.2  # of LARGEST_SIZE tokens: total of a partition more, and sums of a chain to pass on


def is_suitable(gpu: GpuSpec, product: Product) -> bool:
    """Whether `multiply_stream_k` can make the product, and outputs are not too many to be stored by it."""
    matrix = product.matrix
    return (
        gpu.has_wgmma
        and matrix.format.name in FORMATS
        and matrix.num_experts == 1
        and product.epilogue not in (Epilogue.STORE_FLOAT, Epilogue.SOFTCAP)
        and product.out.shape[0] <= MAX_TOKENS
    )


def stream_k_shape(gpu: GpuSpec, matrix: PackedMatrix, num_tokens: int) -> StreamKShape:
    """The one that takes least time."""
    return shape_of(gpu, matrix.num_rows, matrix.num_chunks, matrix.num_partitions, shaped_as(num_tokens))


@lru_cache(4096)
def shape_of(gpu: GpuSpec, num_rows: int, num_chunks: int, num_partitions: int, num_tokens: int) -> StreamKShape:
    """The one of `shapes_of` that takes least time."""
    shapes = shapes_of(gpu, num_rows, num_chunks, num_partitions, num_tokens)
    return min(shapes, key=lambda shape: shape.estimated_us)


def shapes_of(
    gpu: GpuSpec, num_rows: int, num_chunks: int, num_partitions: int, num_tokens: int
) -> Iterator[StreamKShape]:
    """All there are: a chain for one partition, else tiles of `LARGEST_SIZE` and `CUT_SIZE`, and these cut."""

    def num_tiles(size: int) -> int:
        return -(-num_rows // BLOCK_OUTPUTS) * -(-num_tokens // size)

    def estimate(size: int, tiles_of_block: float, finishing_us: float) -> float:
        return _START_US + tiles_of_block * num_chunks * _CHUNK_US[size] + finishing_us

    tiles = num_tiles(LARGEST_SIZE)
    if num_partitions == 1:
        parts = tiles * CHAIN_PARTS
        most = -(-parts // min(gpu.num_sms, tiles))  # of a block
        finishing_us = -(-most // CHAIN_PARTS) * _STORE_US[LARGEST_SIZE] + _CHAIN_US
        us = estimate(LARGEST_SIZE, most / CHAIN_PARTS, finishing_us)
        yield StreamKShape(LARGEST_SIZE, -(-parts // most), most, 1, us)
        return
    most = -(-tiles // min(gpu.num_sms, tiles))
    finishing_us = most * (_STORE_US[LARGEST_SIZE] + (num_partitions - 1) * _TOTAL_US)
    yield StreamKShape(LARGEST_SIZE, -(-tiles // most), most, 1, estimate(LARGEST_SIZE, most, finishing_us))

    tiles = num_tiles(CUT_SIZE)
    parts = tiles * num_partitions
    for most in {-(-tiles // min(gpu.num_sms, tiles)) * num_partitions, -(-parts // min(gpu.num_sms, parts))}:
        blocks = [_work_of(block, most, num_partitions) for block in range(num_partitions)]  # then they are alike
        if most < num_partitions:  # what others leave comes last
            blocks.append(tuple(map(max, *blocks)))
        finishing_us = max(
            left * _LEFT_US + stored * _STORE_US[CUT_SIZE] + added * _ADDED_US for left, stored, added in blocks
        )
        us = estimate(CUT_SIZE, most / num_partitions, finishing_us)
        yield StreamKShape(CUT_SIZE, -(-parts // most), most, max(left for left, _, _ in blocks), us)


def _work_of(block: int, parts_of_block: int, num_partitions: int) -> tuple[int, int, int]:
    """Partitions that a block leaves to another one, tiles that it stores, and partitions left to it."""
    first = block * parts_of_block % num_partitions
    left = min(-first % num_partitions, parts_of_block)
    own = parts_of_block - left
    return left, -(-own // num_partitions), -own % num_partitions


def multiply_stream_k(context: Context, product: Product, shape: StreamKShape) -> None:
    """With one of the shapes of the product's matrix and tokens."""
    matrix = product.matrix
    size, num_blocks, parts_of_block, num_places, _ = shape
    assert num_blocks <= MAX_BLOCKS
    partials = context.scratch((num_blocks, num_places, size, BLOCK_OUTPUTS), np.float32)
    hopper = hopper_params(tiled_params(product, partials=partials), product.x, size)
    is_chain = size == LARGEST_SIZE and matrix.num_partitions == 1
    context.launch(
        "matmul/matmul_stream_k",
        f"matmul_stream_k_chain_{size}" if is_chain else f"matmul_stream_k_{size}",
        (num_blocks, 1, 1),
        256,
        StreamKParams(hopper=hopper, parts_of_block=parts_of_block, num_places=num_places),
        shared_bytes=context.gpu.spread(ring_bytes(context.gpu, matrix.format, size), num_blocks),
        FORMAT=matrix.format.name,
    )


declare_constants("matmul/matmul_stream_k.cuh", MAX_BLOCKS=MAX_BLOCKS, CHAIN_PARTS=CHAIN_PARTS)
