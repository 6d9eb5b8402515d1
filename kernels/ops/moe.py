"""Mixture of experts: router, chosen experts, weighted sum; all on the device."""

from __future__ import annotations

import struct

import numpy as np

from kernels.ops.matmul import Epilogue, ExpertTiles, Product, multiply_routed, multiply_tiles
from kernels.ops.matmul_tuning import MAX_FEW, SUMMING_SIZES
from kernels.ops.norm import NORM_PARTS, norm_fields
from kernels.runtime.compiler import Variant
from kernels.runtime.device_array import DeviceArray, pointer_of
from kernels.runtime.launcher import Context
from kernels.weights.packed import Experts
from kernels.weights.parameters import Norm, Router

_ROUTE_GROUPS = 4  # of warps in a block of moe_route
_ROUTE_EXPERTS = 8  # that such a group has at once, as in moe.cu
_ROUTE_TOKENS = 8  # of a block of moe_route_many, as in moe.cu
_MANY_TOKENS = 1024  # from which on that takes less time
_PLAN_WARPS = 32  # of the block of moe_plan

_ROUTE = struct.Struct("<7Q 2Q f i f 4x 3i 4x")
_PLAN = struct.Struct("<5Q 4i")
_GATHER = struct.Struct("<3Q i 4x")
_COMBINE = struct.Struct("<5Q 4i")


def variants() -> list[Variant]:
    """What of moe.cu is compiled."""
    return [("moe/moe", {})]


def norm_moe_residual(
    context: Context,
    x: DeviceArray,
    norm: Norm,
    router: Router,
    experts: Experts,
    alpha: float,
    limit: float,
    *,
    out: DeviceArray,
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
    activated = context.scratch((num_pairs, experts.down.width), np.float16)
    results = context.scratch((num_pairs, width), np.float32)
    logits = chosen = shares = places = tiles = None
    if num_tokens <= MAX_FEW:
        logits = context.scratch((num_tokens, num_experts), np.float32)
    else:
        chosen = context.scratch((num_pairs,), np.int32)
        shares = context.scratch((num_pairs,), np.float32)
    route = _ROUTE.pack(
        x.pointer, router.weight.pointer, router.bias.pointer, normed.pointer, pointer_of(logits), pointer_of(chosen),
        pointer_of(shares), *norm_fields(norm, width), num_tokens, num_experts, num_used,
    )  # fmt: skip
    inputs = normed
    if logits is not None:
        context.launch("moe/moe", "moe_logits", (num_experts, num_tokens), 32 * NORM_PARTS, route)
    elif chosen is not None:
        _launch_route(context, route, num_tokens, num_experts, width)
        rows, places, tiles = _plan(context, chosen, num_experts, num_used)
        inputs = _gather(context, normed, rows)
    for product in (
        Product(inputs, experts.gate_up, activated, Epilogue.CLAMPED_SWIGLU, alpha=alpha, limit=limit),
        Product(activated, experts.down, results, Epilogue.STORE_FLOAT),
    ):
        if logits is not None:
            multiply_routed(context, product, logits, num_used)
        else:
            multiply_tiles(context, product, tiles)
    _combine(context, results, router, places, shares, logits, out)


def _launch_route(context: Context, params: bytes, num_tokens: int, num_experts: int, width: int) -> None:
    token_bytes = (width + 2 * NORM_PARTS + (NORM_PARTS + 1) * num_experts) * 4
    kernel, tokens, groups = "moe_route", 1, min(_ROUTE_GROUPS, -(-num_experts // _ROUTE_EXPERTS))
    if num_tokens >= _MANY_TOKENS and _ROUTE_TOKENS * token_bytes <= context.gpu.shared_bytes:
        kernel, tokens, groups = "moe_route_many", _ROUTE_TOKENS, 1
    context.launch(
        "moe/moe",
        kernel,
        -(-num_tokens // tokens),
        32 * NORM_PARTS * groups,
        params,
        shared_bytes=tokens * token_bytes,
    )


def _plan(
    context: Context, chosen: DeviceArray, num_experts: int, num_used: int
) -> tuple[DeviceArray, DeviceArray, ExpertTiles]:
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
    shared_bytes = (_PLAN_WARPS + 2) * (num_experts + 1) * 4
    context.launch("moe/moe", "moe_plan", 1, 32 * _PLAN_WARPS, params, shared_bytes=shared_bytes)
    return rows, places, ExpertTiles(entries, num_tiles, size)


def _gather(context: Context, normed: DeviceArray, rows: DeviceArray) -> DeviceArray:
    """``rows`` [pairs] of ``normed``, one after the other."""
    num_pairs, width = rows.shape[0], normed.shape[1]
    gathered = context.scratch((num_pairs, width), np.float16)
    params = _GATHER.pack(normed.pointer, rows.pointer, gathered.pointer, width)
    context.launch("moe/moe", "moe_gather", num_pairs, 128, params)
    return gathered


def _combine(
    context: Context,
    results: DeviceArray,
    router: Router,
    places: DeviceArray | None,
    shares: DeviceArray | None,
    logits: DeviceArray | None,
    out: DeviceArray,
) -> None:
    """Add the sum of each token's ``results`` [pairs, H] to ``out``; of few tokens the shares come from ``logits``."""
    num_tokens, width = out.shape
    num_experts, num_used = router.weight.shape[0], router.num_used
    params = _COMBINE.pack(
        results.pointer, pointer_of(places), pointer_of(shares), pointer_of(logits), out.pointer,
        num_tokens, num_experts, num_used, width,
    )  # fmt: skip
    threads = 64 if logits else 256
    grid = (-(-width // (4 * threads)), num_tokens)
    context.launch("moe/moe", "moe_combine", grid, threads, params, shared_bytes=4 * num_used)
