"""Products of tokens with the experts that a router has chosen for each."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from kernels.ops.layers.grouped_matmul import is_suitable, multiply_grouped
from kernels.ops.matmul import launch_small_batch, multiply_tiled
from kernels.ops.matmul_params import (
    Epilogue,
    ExpertTiles,
    Product,
    RoutedShared,
    RoutingParams,
    hopper_params,
    tiled_params,
)
from kernels.ops.matmul_tuning import BLOCK_OUTPUTS, STREAMED_SCALE_BYTES, SmallBatchShape, small_batch_shape
from kernels.runtime.cuda_constants import declare_traits
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import GpuSpec
from kernels.runtime.launcher import Context
from kernels.weights.formats import CHUNK, FORMATS, Format
from kernels.weights.packed import PackedMatrix

STAYING_SIZES = (64, 128)
"""Tokens of the tiles of matmul_tiled_experts_N, whose blocks stay for one tile after the other."""
_STAYING_BLOCKS = {64: 2, 128: 1}  # of an SM, at most
_SM_BYTES = 225 * 1024
_ROW_BYTES = 132 * 4  # of a token's float32 outputs in shared memory
_GATED_BYTES = 144  # of its gated ones
_BARRIER_BYTES, _ALIGNMENT = 256, 1024
_RESERVED_BYTES = 1024  # of shared memory, by the system for each block


class StayingRing(NamedTuple):
    """What the shared memory of a block of matmul_tiled_experts_N holds, beside two units of weights."""

    stages: int  # of x, two chunks each
    store_tokens: int  # whose outputs are stored together
    store_bytes: int
    num_bytes: int
    blocks_per_sm: int


@lru_cache
def staying_ring(format_: Format, size: int) -> StayingRing:
    """For tiles of ``size`` tokens."""
    store_tokens = size // 2 if size > 64 else 16
    store_bytes = max(store_tokens * _ROW_BYTES, size * _GATED_BYTES)
    rest = 2 * 8 * format_.unit_bytes + store_bytes + _BARRIER_BYTES + _ALIGNMENT
    stages = 3 if size == 64 else 4
    num_bytes = rest + stages * 2 * size * CHUNK * 2
    blocks_per_sm = max(1, min(_STAYING_BLOCKS[size], _SM_BYTES // num_bytes))
    return StayingRing(stages, store_tokens, store_bytes, num_bytes, blocks_per_sm)


declare_traits(
    "matmul/matmul_tiled_experts.cuh",
    "StayingRing",
    {(name, size): staying_ring(each, size)._asdict() for name, each in FORMATS.items() for size in STAYING_SIZES},
)


def in_halves(gpu: GpuSpec, matrix: PackedMatrix, shape: SmallBatchShape) -> SmallBatchShape:
    """The ``shape`` of one block an SM, or that of two with half of its tiles each; for what comes after the router.

    The first of two begins beside a block of the router, and is there when that one ends. Both have room where threads
    have registers for so many warps. They have the same work where a block has its tiles at once.
    """
    has_room = gpu.has_dependent_launch and matrix.format.routed_block_warps > matrix.format.block_warps
    is_even = matrix.num_tiles == shape.num_blocks * shape.tiles_at_once and shape.tiles_at_once % 2 == 0
    shared_bytes, num_warps = gpu.shared_bytes // 4 - _RESERVED_BYTES, shape.num_warps // 2
    if not (has_room and is_even and shape.ring_at + num_warps * STREAMED_SCALE_BYTES <= shared_bytes):
        return shape
    return SmallBatchShape(2 * shape.num_blocks, shape.tiles_at_once // 2, num_warps, shape.ring_at, shared_bytes)


def multiply_routed(
    context: Context,
    product: Product,
    router_logits: DeviceArray,
    experts: DeviceArray,
    *,
    is_first: bool,
    shared: RoutedShared | None = None,
) -> None:
    """One to four tokens, each through the experts that ``router_logits`` [T, experts] prefer.

    The kernel launched before writes the logits or, if the product is not the first one, nothing but ``x``. The first
    one writes to ``experts`` [T, num_used] int32 which they are.
    The product's ``out`` is [T * num_used, outputs] by rank; its ``x`` has a row for each token or for each of those.
    With one token and ``shared``, that expert's gates and up projections are one more rank.
    """
    (num_tokens, num_experts), num_used = router_logits.shape, experts.shape[1]
    num_ranks = num_used + (shared is not None)
    shape = small_batch_shape(context.gpu, product.matrix, 1, num_products=num_tokens * num_ranks)
    if is_first:
        shape = in_halves(context.gpu, product.matrix, shape)
    routing = RoutingParams(
        router_logits=router_logits.pointer,
        experts=experts.pointer,
        shared_packed=shared.gate_up.packed.pointer if shared else 0,
        shares=shared.shares.pointer if shared else 0,
        num_experts=num_experts,
        num_used=num_used,
        x_row_of_pair=product.x.shape[0] == product.out.shape[0],
        is_first=is_first,
    )
    grid = shape.num_blocks, num_ranks, num_tokens
    launch_small_batch(context, "matmul_gemv_routed", grid, shape, product, routing)


def multiply_summed(
    context: Context,
    product: Product,
    router_logits: DeviceArray,
    experts: DeviceArray,
    shape: SmallBatchShape,
    shared: RoutedShared | None = None,
) -> None:
    """The last product of one token's ``experts`` [1, num_used], and their sum, weighted as the ``router_logits`` say.

    It is added to the product's ``out`` [1, outputs] float32; its ``x`` has a row for each expert, by rank, and last
    that of ``shared``. The kernels launched before it write nothing but ``x`` and ``experts``, which were -1 before.
    """
    routing = RoutingParams(
        router_logits=router_logits.pointer,
        experts=experts.pointer,
        shared_packed=shared.down.packed.pointer if shared else 0,
        shares=0,
        num_experts=router_logits.shape[1],
        num_used=experts.shape[1],
        x_row_of_pair=True,
        is_first=False,
    )
    launch_small_batch(context, "matmul_gemv_summed", (shape.num_blocks, 1, 1), shape, product, routing)


def multiply_expert_tiles(context: Context, product: Product, tiles: ExpertTiles, *, is_first: bool = True) -> None:
    """Any number of tokens with their experts, in ``tiles`` of one expert each.

    If the product is not the first one the kernel launched before writes nothing but ``x``.
    """
    if is_suitable(context.gpu, product, tiles.size):
        multiply_grouped(context, product, tiles, follows_plan=is_first)
        return
    if not _can_stay(context.gpu, product, tiles):
        multiply_tiled(context, product, tiles)
        return
    matrix = product.matrix
    ring = staying_ring(matrix.format, tiles.size)
    num_tiles = -(-matrix.num_rows // BLOCK_OUTPUTS) * tiles.entries.shape[0]
    context.launch(
        "matmul/matmul_tiled",
        f"matmul_tiled_experts_{tiles.size}",
        min(ring.blocks_per_sm * context.gpu.num_sms, num_tiles),
        256,
        hopper_params(tiled_params(product, tiles), product.x, tiles.size),
        shared_bytes=ring.num_bytes,
        FORMAT=matrix.format.name,
    )


def _can_stay(gpu: GpuSpec, product: Product, tiles: ExpertTiles) -> bool:
    """Whether there is a kernel whose blocks stay: see matmul_tiled_experts.cuh."""
    return (
        gpu.has_wgmma
        and tiles.size in STAYING_SIZES
        and product.matrix.format.is_k
        and product.epilogue in (Epilogue.SWIGLU, Epilogue.GEGLU, Epilogue.STORE_FLOAT)
        and product.can_store(16)
        and product.matrix.num_rows % 16 == 0
    )
