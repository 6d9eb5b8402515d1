"""Mixture of experts: router, chosen experts, weighted sum; all on the device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernels.ops.activation import geglu_rows, swiglu_rows
from kernels.ops.matmul import ExpertTiles, Product, multiply_routed, multiply_tiled
from kernels.ops.matmul_params import Epilogue
from kernels.ops.matmul_tuning import MAX_SMALL_BATCH, SUMMING_SIZES
from kernels.ops.norm import NORM_PARTITIONS, DeviceNorm, NormParams, norm_params
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_constants import declare_constants
from kernels.runtime.cuda_struct import CudaStruct, Int32, Pointer
from kernels.runtime.device_array import DeviceArray, pointer_of
from kernels.runtime.launcher import Context
from kernels.weights.packed import Experts, Router
from kernels.weights.parameters import Clamp, Geglu

_ROUTE_GROUPS = 4  # of warps in a block of moe_route
_ROUTE_EXPERTS = 8  # that such a group has at once
_ROUTE_TOKENS = 8  # of a block of moe_route_many
_MANY_TOKENS = 1024  # from which on that takes less time
_PLAN_WARPS = 32  # of the block of moe_plan

declare_constants("moe/moe.cu", ROUTE_EXPERTS=_ROUTE_EXPERTS, ROUTE_TOKENS=_ROUTE_TOKENS, PLAN_WARPS=_PLAN_WARPS)


class RouteParams(CudaStruct, source="moe/moe"):
    """What moe_logits and moe_route* are given."""

    x: Pointer  # [num_tokens, width] float32 residual stream
    weight: Pointer  # [num_experts, width] float32 router
    bias: Pointer  # [num_experts] float32
    input_weight: Pointer  # [width] float32, or null: by what `normed` differs from what the router is given
    normed: Pointer  # [num_tokens, width] float16
    logits: Pointer  # [num_tokens, num_experts] float32; moe_logits
    experts: Pointer  # [num_tokens, num_used] int32 by rank; moe_route*
    routing_weights: Pointer  # [num_tokens, num_used] float32: softmax over the chosen; moe_route*
    norm: NormParams
    num_tokens: Int32
    num_experts: Int32
    num_used: Int32


class PlanParams(CudaStruct, source="moe/moe"):
    """What moe_plan is given."""

    experts: Pointer  # [num_pairs] int32 of each (token, rank)
    rows: Pointer  # [num_pairs] int32: token of each pair, pairs sorted by expert
    places: Pointer  # [num_pairs] int32: where each pair went
    tiles: Pointer  # [max_tiles, 4] int32: (expert, first pair, number of pairs, -)
    num_tiles: Pointer  # [1] int32
    num_pairs: Int32
    num_experts: Int32
    num_used: Int32
    tile_pairs: Int32


class GatherParams(CudaStruct, source="moe/moe"):
    """What moe_gather is given."""

    normed: Pointer  # [num_tokens, width] float16
    rows: Pointer  # [num_pairs] int32: token of each pair, pairs sorted by expert
    out: Pointer  # [num_pairs, width] float16
    width: Int32


class CombineParams(CudaStruct, source="moe/moe"):
    """What moe_combine is given."""

    results: Pointer  # [num_tokens * num_used, width] float32 of the experts
    places: Pointer  # [num_tokens, num_used] int32: rows of `results`; null: in order
    routing_weights: Pointer  # [num_tokens, num_used] float32; null: as `logits` say
    logits: Pointer  # [num_tokens, num_experts] float32
    experts: Pointer  # [num_tokens, num_used] int32 by rank
    output_scales: Pointer  # [num_experts] float32 of the experts' results; null: 1
    out: Pointer  # [num_tokens, width] float32 residual stream, added to or stored
    num_tokens: Int32
    num_experts: Int32
    num_used: Int32
    width: Int32
    adds: Int32


def variants() -> list[Variant]:
    """What of moe.cu is compiled."""
    return [("moe/moe", {})]


def norm_moe_residual(
    context: Context,
    x: DeviceArray,
    norm: DeviceNorm,
    router: Router,
    experts: Experts,
    gating: Clamp | Geglu | None,
    *,
    adds: bool = True,
    out: DeviceArray,
) -> None:
    """Norm, router, the best experts of each token, and their weighted sum added to ``out`` [T, H] float32, or stored.

    ``x`` [T, H] may be ``out``. Experts have a SwiGLU, unless ``gating`` says otherwise. A token's result is its own:
    its experts are summed in the order of their rank.
    """
    num_tokens, width = x.shape
    if not num_tokens:
        return
    num_pairs = num_tokens * router.num_used
    normed = context.scratch((num_tokens, width), np.float16)
    activated = context.scratch((num_pairs, experts.down.width), np.float16)
    results = context.scratch((num_pairs, width), np.float32)
    routing = _route(context, x, norm, router, normed)
    inputs, places, tiles = normed, None, None
    if routing.logits is None:
        rows, places, tiles = _plan(context, routing.experts, router.weight.shape[0])
        inputs = _gather(context, normed, rows)

    def multiply(product: Product, *, is_first: bool = False) -> None:
        if routing.logits is not None:
            multiply_routed(context, product, routing.logits, routing.experts, is_first=is_first)
        else:
            multiply_tiled(context, product, tiles)

    if experts.gate_up[0].gated:
        product = Product(inputs, experts.gate_up[0], activated, Epilogue.SWIGLU)
        if isinstance(gating, Clamp):
            product = product._replace(epilogue=Epilogue.CLAMPED_SWIGLU, alpha=gating.alpha, limit=gating.limit)
        elif gating is not None:
            product = product._replace(epilogue=Epilogue.GEGLU, alpha=gating.scale)
        multiply(product, is_first=True)
    else:
        gate, up = experts.gate_up
        both = context.scratch((num_pairs, 2 * experts.down.width), np.float16)
        multiply(Product(inputs, gate, both, Epilogue.STORE_HALF), is_first=True)
        multiply(Product(inputs, up, both, Epilogue.STORE_HALF, column=gate.num_rows))
        if isinstance(gating, Geglu):
            geglu_rows(context, both, gating.scale, out=activated)
        else:
            swiglu_rows(context, both, gating, out=activated)
    multiply(Product(activated, experts.down, results, Epilogue.STORE_FLOAT))
    _combine(context, results, routing, places, router.output_scales, adds, out)


class _Routing(NamedTuple):
    """The experts of each token, with their weights; or, where the first product is to choose, logits to do it by."""

    experts: DeviceArray  # [T, num_used] int32
    logits: DeviceArray | None = None  # [T, experts] float32
    routing_weights: DeviceArray | None = None  # [T, num_used] float32


def _route(context: Context, x: DeviceArray, norm: DeviceNorm, router: Router, normed: DeviceArray) -> _Routing:
    """``x`` [T, H] normed to ``normed``, and the router on it."""
    num_tokens, width = x.shape
    num_experts, num_used = router.weight.shape[0], router.num_used
    routing = _Routing(context.scratch((num_tokens, num_used), np.int32))
    if num_tokens <= MAX_SMALL_BATCH:
        routing = routing._replace(logits=context.scratch((num_tokens, num_experts), np.float32))
    else:
        routing = routing._replace(routing_weights=context.scratch((num_tokens, num_used), np.float32))
    params = RouteParams(
        x=x.pointer,
        weight=router.weight.pointer,
        bias=router.bias.pointer,
        input_weight=pointer_of(router.input_weight),
        normed=normed.pointer,
        logits=pointer_of(routing.logits),
        experts=routing.experts.pointer,
        routing_weights=pointer_of(routing.routing_weights),
        norm=norm_params(norm, width),
        num_tokens=num_tokens,
        num_experts=num_experts,
        num_used=num_used,
    )
    if routing.logits is not None:
        context.launch("moe/moe", "moe_logits", (num_experts, num_tokens), 32 * NORM_PARTITIONS, params)
    else:
        _launch_route(context, params, num_tokens, num_experts, width)
    return routing


def _launch_route(context: Context, params: RouteParams, num_tokens: int, num_experts: int, width: int) -> None:
    token_bytes = (width + 2 * NORM_PARTITIONS + (NORM_PARTITIONS + 1) * num_experts) * 4
    kernel, tokens, groups = "moe_route", 1, min(_ROUTE_GROUPS, -(-num_experts // _ROUTE_EXPERTS))
    if num_tokens >= _MANY_TOKENS and _ROUTE_TOKENS * token_bytes <= context.gpu.shared_bytes:
        kernel, tokens, groups = "moe_route_many", _ROUTE_TOKENS, 1
    context.launch(
        "moe/moe",
        kernel,
        -(-num_tokens // tokens),
        32 * NORM_PARTITIONS * groups,
        params,
        shared_bytes=tokens * token_bytes,
    )


def _plan(context: Context, chosen: DeviceArray, num_experts: int) -> tuple[DeviceArray, DeviceArray, ExpertTiles]:
    """Pairs sorted by expert: (token of each, place of each unsorted pair, tiles of one expert each)."""
    num_tokens, num_used = chosen.shape
    num_pairs = num_tokens * num_used
    size = next((size for size in SUMMING_SIZES if num_pairs <= size * num_experts), SUMMING_SIZES[-1])
    max_tiles = min(num_experts, num_pairs) + num_pairs // size
    rows = context.scratch((num_pairs,), np.int32)
    places = context.scratch((num_pairs,), np.int32)
    entries = context.scratch((max_tiles, 4), np.int32)
    num_tiles = context.scratch((1,), np.int32)
    params = PlanParams(
        experts=chosen.pointer,
        rows=rows.pointer,
        places=places.pointer,
        tiles=entries.pointer,
        num_tiles=num_tiles.pointer,
        num_pairs=num_pairs,
        num_experts=num_experts,
        num_used=num_used,
        tile_pairs=size,
    )
    shared_bytes = (_PLAN_WARPS + 2) * (num_experts + 1) * 4
    context.launch("moe/moe", "moe_plan", 1, 32 * _PLAN_WARPS, params, shared_bytes=shared_bytes)
    return rows, places, ExpertTiles(entries, num_tiles, size)


def _gather(context: Context, normed: DeviceArray, rows: DeviceArray) -> DeviceArray:
    """``rows`` [pairs] of ``normed``, one after the other."""
    num_pairs, width = rows.shape[0], normed.shape[1]
    gathered = context.scratch((num_pairs, width), np.float16)
    params = GatherParams(normed=normed.pointer, rows=rows.pointer, out=gathered.pointer, width=width)
    context.launch("moe/moe", "moe_gather", num_pairs, 128, params)
    return gathered


def _combine(
    context: Context,
    results: DeviceArray,
    routing: _Routing,
    places: DeviceArray | None,
    output_scales: DeviceArray | None,
    adds: bool,
    out: DeviceArray,
) -> None:
    """Add the weighted sum of each token's ``results`` [pairs, H] to ``out``, or store it there.

    The routing weights of up to four tokens come from the logits.
    """
    (num_tokens, width), num_used, logits = out.shape, routing.experts.shape[1], routing.logits
    params = CombineParams(
        results=results.pointer,
        places=pointer_of(places),
        routing_weights=pointer_of(routing.routing_weights),
        logits=pointer_of(logits),
        experts=routing.experts.pointer,
        output_scales=pointer_of(output_scales),
        out=out.pointer,
        num_tokens=num_tokens,
        num_experts=logits.shape[1] if logits is not None else 0,
        num_used=num_used,
        width=width,
        adds=adds,
    )
    threads = 256 if logits is None else 64
    grid = (-(-width // (4 * threads)), num_tokens)
    context.launch("moe/moe", "moe_combine", grid, threads, params, shared_bytes=4 * num_used)
