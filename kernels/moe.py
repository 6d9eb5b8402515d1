"""Mixture of experts: router, chosen experts, weighted sum; all on the device."""

from __future__ import annotations

import struct

import numpy as np

from kernels.array import Array
from kernels.launch import Context
from kernels.layers import Norm, Router
from kernels.loader import Variant
from kernels.matmul import MAX_FEW, Epilogue, multiply_few, multiply_tiles
from kernels.norm import NORM_PARTS, norm_fields
from kernels.packed import Experts
from kernels.tuning import SUMMING_SIZES

MAX_ROUTE_WARPS = 32  # of a block

_ROUTE = struct.Struct("<7Q 2Q f i 2i")
_PLAN = struct.Struct("<5Q 4i")
_GATHER = struct.Struct("<3Q i 4x")
_COMBINE = struct.Struct("<4Q 3i 4x")


def variants() -> list[Variant]:
    return [("moe", {})]


def norm_moe_residual(
    context: Context, x: Array, norm: Norm, router: Router, experts: Experts, alpha: float, limit: float, *, out: Array
) -> None:
    """Norm, router, the best experts of each token, and their weighted sum added to ``out`` [T, H] float32.

    ``x`` [T, H] may be ``out``. ``alpha`` and ``limit`` are those of the clamped SwiGLU. A token's result is its own:
    its experts are summed in the order of their rank.
    """
    num_tokens, width = x.shape
    if not num_tokens:
        return
    num_experts, num_used = router.weight.shape[0], router.num_used
    num_pairs = num_tokens * num_used
    normed = context.scratch((num_tokens, width), np.float16)
    chosen = context.scratch((num_pairs,), np.int32)
    rows = context.scratch((num_pairs,), np.int32)
    shares = context.scratch((num_pairs,), np.float32)
    activated = context.scratch((num_pairs, experts.down.width), np.float16)
    results = context.scratch((num_pairs, width), np.float32)
    context.launch(
        "moe",
        "moe_route",
        num_tokens,
        32 * min(MAX_ROUTE_WARPS, max(NORM_PARTS, num_experts)),
        _ROUTE.pack(
            x.pointer, router.weight.pointer, router.bias.pointer, normed.pointer, chosen.pointer, rows.pointer,
            shares.pointer, *norm_fields(norm, width), num_experts, num_used,
        ),
        shared_bytes=(width + num_experts + 2 * NORM_PARTS) * 4,
    )  # fmt: skip
    places = None
    if num_tokens <= MAX_FEW:
        multiply_few(context, normed, experts.gate_up, num_pairs, activated, Epilogue.CLAMPED_SWIGLU, x_rows=rows,
                     token_experts=chosen, alpha=alpha, limit=limit)  # fmt: skip
        multiply_few(context, activated, experts.down, num_pairs, results, Epilogue.STORE_FLOAT, token_experts=chosen)
    else:
        rows, places, tiles = _plan(context, chosen, num_experts, num_used)
        gathered = context.scratch((num_pairs, width), np.float16)
        params = _GATHER.pack(normed.pointer, rows.pointer, gathered.pointer, width)
        context.launch("moe", "moe_gather", num_pairs, 128, params)
        multiply_tiles(context, gathered, experts.gate_up, num_pairs, activated, Epilogue.CLAMPED_SWIGLU, tiles=tiles,
                       alpha=alpha, limit=limit)  # fmt: skip
        multiply_tiles(context, activated, experts.down, num_pairs, results, Epilogue.STORE_FLOAT, tiles=tiles)
    params = _COMBINE.pack(
        results.pointer, places.pointer if places else 0, shares.pointer, out.pointer, num_tokens, num_used, width
    )
    context.launch("moe", "moe_combine", (-(-width // 1024), num_tokens), 256, params)


def _plan(
    context: Context, chosen: Array, num_experts: int, num_used: int
) -> tuple[Array, Array, tuple[Array, Array, int]]:
    """Pairs sorted by expert: (token of each, place of each unsorted pair, tiles of one expert each)."""
    num_pairs = chosen.shape[0]
    size = next((size for size in SUMMING_SIZES if num_pairs <= size * num_experts), SUMMING_SIZES[-1])
    max_tiles = min(num_experts, num_pairs) + num_pairs // size
    rows = context.scratch((num_pairs,), np.int32)
    places = context.scratch((num_pairs,), np.int32)
    entries = context.scratch((max_tiles, 4), np.int32)
    num_tiles = context.scratch((1,), np.int32)
    params = _PLAN.pack(
        chosen.pointer, rows.pointer, places.pointer, entries.pointer, num_tiles.pointer,
        num_pairs, num_experts, num_used, size,
    )  # fmt: skip
    context.launch("moe", "moe_plan", 1, 1024, params, shared_bytes=2 * (num_experts + 1) * 4)
    return rows, places, (entries, num_tiles, size)
