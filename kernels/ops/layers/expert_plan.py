"""Which tokens go through which experts, in tiles for the tiled GEMM; all on the device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernels.ops.matmul_params import ExpertTiles
from kernels.ops.matmul_tuning import routed_sizes, routed_tile_size
from kernels.runtime.cuda_struct import CudaStruct, Int32, Pointer
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import GpuSpec
from kernels.runtime.launcher import Context
from kernels.weights.packed import Experts, PackedMatrix


class TilesParams(CudaStruct, source="moe/moe"):
    """Tiles of up to ``tile_pairs`` pairs of one expert each."""

    tiles: Pointer  # [max_tiles, 4] int32: (expert, first pair, number of pairs, -)
    num_tiles: Pointer  # [1] int32
    tile_pairs: Int32


class PlanParams(CudaStruct, source="moe/moe"):
    """What moe_plan is given."""

    experts: Pointer  # [num_pairs] int32 of each (token, rank)
    rows: Pointer  # [num_pairs] int32: token of each pair, pairs sorted by expert
    places: Pointer  # [num_pairs] int32: where each pair went
    gate_up: TilesParams
    down: TilesParams
    num_pairs: Int32
    num_experts: Int32
    num_used: Int32


class GatherParams(CudaStruct, source="moe/moe"):
    """What moe_gather is given."""

    normed: Pointer  # [num_tokens, width] float16
    rows: Pointer  # [num_pairs] int32: token of each pair, pairs sorted by expert
    out: Pointer  # [num_pairs, width] float16
    width: Int32


class ExpertPlan(NamedTuple):
    """(token, rank) pairs sorted by expert, and the tiles in which they are multiplied."""

    rows: DeviceArray  # [pairs] int32: token of each
    places: DeviceArray  # [pairs] int32: where each unsorted pair went
    gate_up: ExpertTiles
    down: ExpertTiles


def tile_sizes(gpu: GpuSpec, experts: Experts, num_tokens: int, num_used: int, num_experts: int) -> tuple[int, int]:
    """Tokens of the tiles of gates and up projections, and of those of down projections."""

    def size_of(*matrices: PackedMatrix) -> int:
        return routed_tile_size(routed_sizes(gpu, *matrices), num_tokens, num_used, num_experts)

    return size_of(*experts.gate_up), size_of(experts.down)


def plan_experts(context: Context, chosen: DeviceArray, num_experts: int, sizes: tuple[int, int]) -> ExpertPlan:
    """Of the experts ``chosen`` [T, num_used] int32 for each token, with tiles of the `tile_sizes`."""
    num_pairs, num_used = chosen.size, chosen.shape[1]

    def tiles_of(size: int) -> ExpertTiles:
        max_tiles = min(num_experts, num_pairs) + num_pairs // size
        return ExpertTiles(context.scratch((max_tiles, 4), np.int32), context.scratch((1,), np.int32), size)

    plan = ExpertPlan(
        context.scratch((num_pairs,), np.int32), context.scratch((num_pairs,), np.int32), *map(tiles_of, sizes)
    )
    gate_up, down = (
        TilesParams(tiles=tiles.entries.pointer, num_tiles=tiles.num_tiles.pointer, tile_pairs=tiles.size)
        for tiles in (plan.gate_up, plan.down)
    )
    params = PlanParams(
        experts=chosen.pointer,
        rows=plan.rows.pointer,
        places=plan.places.pointer,
        gate_up=gate_up,
        down=down,
        num_pairs=num_pairs,
        num_experts=num_experts,
        num_used=num_used,
    )
    context.launch("moe/moe", "moe_plan", 1, 1024, params, shared_bytes=5 * (num_experts + 1) * 4)
    return plan


def gather_rows(context: Context, normed: DeviceArray, rows: DeviceArray) -> DeviceArray:
    """``rows`` [pairs] of ``normed``, one after the other."""
    num_pairs, width = rows.shape[0], normed.shape[1]
    gathered = context.scratch((num_pairs, width), np.float16)
    params = GatherParams(normed=normed.pointer, rows=rows.pointer, out=gathered.pointer, width=width)
    context.launch("moe/moe", "moe_gather", num_pairs, 128, params)
    return gathered
