"""Which tokens go through which experts, in tiles for the tiled GEMM; all on the device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernels.ops.layers.grouped_matmul import grouped_size
from kernels.ops.matmul_params import ExpertTiles
from kernels.ops.matmul_tuning import LARGEST_SIZE, routed_sizes, routed_tile_size
from kernels.runtime.cuda_constants import declare_constants
from kernels.runtime.cuda_struct import CudaStruct, Int32, Pointer
from kernels.runtime.device_array import DeviceArray, pointer_of
from kernels.runtime.gpu_spec import GpuSpec
from kernels.runtime.launcher import Context
from kernels.weights.packed import Experts, PackedMatrix

_PLAN_THREADS = 1024
_PLAN_PAIRS = 2 * _PLAN_THREADS  # of a block of moe_plan

_SORT_THREADS = 512
_SORTED_PAIRS = 4096
"""Up to which moe_sort takes less time: its work grows with their square."""

declare_constants(
    "moe/moe.cu",
    PLAN_THREADS=_PLAN_THREADS,
    PLAN_PAIRS=_PLAN_PAIRS,
    SORT_THREADS=_SORT_THREADS,
    MOST_TILE_PAIRS=LARGEST_SIZE,
)


class TilesParams(CudaStruct, source="moe/moe"):
    """Tiles of up to ``tile_pairs`` pairs of one expert each."""

    tiles: Pointer  # [max_tiles, 4] int32: (expert, first pair, number of pairs, -)
    num_tiles: Pointer  # [1] int32
    tile_pairs: Int32


class PlanParams(CudaStruct, source="moe/moe"):
    """What moe_count and moe_plan are given."""

    experts: Pointer  # [num_pairs] int32 of each (token, rank)
    counts: Pointer  # [blocks, num_experts] int32 of each block's pairs
    places: Pointer  # [num_pairs] int32: where each pair went, pairs sorted by expert
    gate_up: TilesParams
    down: TilesParams  # null: the same
    num_pairs: Int32
    num_experts: Int32
    num_used: Int32


class GatherParams(CudaStruct, source="moe/moe"):
    """What moe_gather is given."""

    normed: Pointer  # [num_tokens, width] float16
    places: Pointer  # [num_tokens, num_used] int32: where each pair went, pairs sorted by expert
    out: Pointer  # [num_pairs, width] float16
    width: Int32
    num_used: Int32


class SortParams(CudaStruct, source="moe/moe"):
    """What moe_sort is given."""

    plan: PlanParams  # `counts` null
    gather: GatherParams  # `places` null


class ExpertPlan(NamedTuple):
    """(token, rank) pairs sorted by expert, and the tiles in which they are multiplied."""

    places: DeviceArray  # [pairs] int32: where each unsorted pair went
    gate_up: ExpertTiles
    down: ExpertTiles


def tile_sizes(gpu: GpuSpec, experts: Experts, num_tokens: int, num_used: int, num_experts: int) -> tuple[int, int]:
    """Tokens of the tiles of gates and up projections, and of those of down projections."""

    def size_of(*matrices: PackedMatrix) -> int:
        grouped = grouped_size(gpu, matrices[0], num_tokens, num_used) if len(matrices) == 1 else None
        return grouped or routed_tile_size(routed_sizes(gpu, *matrices), num_tokens, num_used, num_experts)

    return size_of(*experts.gate_up), size_of(experts.down)


def plan_rows(
    context: Context, chosen: DeviceArray, normed: DeviceArray, num_experts: int, sizes: tuple[int, int]
) -> tuple[ExpertPlan, DeviceArray]:
    """A plan of the experts ``chosen`` [T, num_used] int32 for each token, with tiles of the `tile_sizes`; and rows.

    These are [pairs, H], each pair's the row of its token in ``normed`` [T, H] float16.
    """
    (num_tokens, num_used), num_pairs, width = chosen.shape, chosen.size, normed.shape[1]

    def tiles_of(size: int) -> ExpertTiles:
        max_tiles = min(num_experts, num_pairs) + num_pairs // size
        return ExpertTiles(context.scratch((max_tiles, 4), np.int32), context.scratch((1,), np.int32), size)

    lists = {size: tiles_of(size) for size in sizes}
    plan = ExpertPlan(context.scratch((num_pairs,), np.int32), *(lists[size] for size in sizes))
    gathered = context.scratch((num_pairs, width), np.float16)
    sorts = num_pairs <= _SORTED_PAIRS
    gather = GatherParams(
        normed=normed.pointer,
        places=0 if sorts else plan.places.pointer,
        out=gathered.pointer,
        width=width,
        num_used=num_used,
    )
    if sorts:
        params = SortParams(plan=_plan_params(plan, chosen, num_experts), gather=gather)
        grid, shared_bytes = 1 + -(-num_pairs // (_SORT_THREADS // 32)), 4 * (num_pairs + 3 + 2 * (num_experts + 1))
        context.launch("moe/moe", "moe_sort", grid, _SORT_THREADS, params, shared_bytes=shared_bytes)
    else:
        _plan_many(context, plan, chosen, num_experts)
        context.launch("moe/moe", "moe_gather", num_tokens, 128, gather)
    return plan, gathered


def _plan_many(context: Context, plan: ExpertPlan, chosen: DeviceArray, num_experts: int) -> None:
    """The plan of any number of pairs."""
    num_blocks = -(-chosen.size // _PLAN_PAIRS)
    counts = context.scratch((num_blocks, num_experts), np.int32)
    params = _plan_params(plan, chosen, num_experts, counts)
    context.launch("moe/moe", "moe_count", num_blocks, _PLAN_THREADS, params, shared_bytes=4 * num_experts)
    context.launch("moe/moe", "moe_plan", num_blocks, _PLAN_THREADS, params, shared_bytes=4 * 3 * (num_experts + 1))


def _plan_params(
    plan: ExpertPlan, chosen: DeviceArray, num_experts: int, counts: DeviceArray | None = None
) -> PlanParams:
    gate_up, *other = (
        TilesParams(tiles=tiles.entries.pointer, num_tiles=tiles.num_tiles.pointer, tile_pairs=tiles.size)
        for tiles in {tiles.size: tiles for tiles in (plan.gate_up, plan.down)}.values()
    )
    return PlanParams(
        experts=chosen.pointer,
        counts=pointer_of(counts),
        places=plan.places.pointer,
        gate_up=gate_up,
        down=other[0] if other else TilesParams(tiles=0, num_tiles=0, tile_pairs=0),
        num_pairs=chosen.size,
        num_experts=num_experts,
        num_used=chosen.shape[1],
    )
