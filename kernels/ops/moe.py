"""Mixture of experts: router, chosen experts, weighted sum; all on the device."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from kernels.ops.activation import geglu_rows, swiglu_rows
from kernels.ops.layers.expert_plan import plan_rows, tile_sizes
from kernels.ops.layers.routed_matmul import multiply_expert_tiles, multiply_routed, multiply_summed
from kernels.ops.layers.router import Routing, route
from kernels.ops.layers.shared_expert import add_shared_expert
from kernels.ops.matmul_params import Epilogue, Product, RoutedShared
from kernels.ops.matmul_tuning import SmallBatchShape, summed_shape
from kernels.ops.norm import DeviceNorm
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_struct import CudaStruct, Int32, Pointer
from kernels.runtime.device_array import DeviceArray, pointer_of
from kernels.runtime.launcher import Context
from kernels.weights.packed import Experts, PackedMatrix, Router
from kernels.weights.parameters import Clamp, Geglu


class CombineParams(CudaStruct, source="moe/moe"):
    """What moe_combine and moe_combine_N are given."""

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
    its experts are summed in the order of their rank, then comes the shared one.
    """
    num_tokens, width = x.shape
    if not num_tokens:
        return
    summed, shared = _summed(context, router, experts) if num_tokens == 1 and adds else (None, None)
    num_pairs = num_tokens * (router.num_used + (shared is not None))
    normed = context.scratch((num_tokens, width), np.float16)
    activated = context.scratch((num_pairs, experts.down.width), np.float16)
    routing = route(context, x, norm, router, normed, shared)
    plan, inputs = None, normed
    if not routing.is_small:
        num_experts = router.weight.shape[0]
        sizes = tile_sizes(context.gpu, experts, num_tokens, router.num_used, num_experts)
        plan, inputs = plan_rows(context, routing.experts, normed, num_experts, sizes)

    def multiply(product: Product, *, is_first: bool = False) -> None:
        if plan is None:
            multiply_routed(context, product, routing.logits, routing.experts, is_first=is_first, shared=shared)
        else:
            is_down = product.matrix is experts.down
            multiply_expert_tiles(context, product, plan.down if is_down else plan.gate_up, is_first=not is_down)

    _activate(context, inputs, experts, gating, multiply, activated)
    if summed is not None:
        product = Product(activated, experts.down, out, Epilogue.ADD_RESIDUAL)
        multiply_summed(context, product, routing.logits, routing.experts, summed, shared)
        if shared is None:
            _add_shared(context, normed, experts, out)
        return
    results = context.scratch((num_pairs, width), np.float32)
    multiply(Product(activated, experts.down, results, Epilogue.STORE_FLOAT))
    _combine(context, results, routing, plan.places if plan else None, router.output_scales, adds, out)
    _add_shared(context, normed, experts, out)


def _summed(context: Context, router: Router, experts: Experts) -> tuple[SmallBatchShape | None, RoutedShared | None]:
    """How one kernel multiplies the down projections of one token's experts and adds up what they give; None: none can.

    With the shared expert, if it is like the others.
    """
    if router.output_scales is not None:
        return None, None
    shared = experts.shared
    if shared is not None:
        gate_up, down = shared.gate_up.matrices[0], shared.down.matrices[0]
        is_like_them = gate_up.gated and _is_like(gate_up, experts.gate_up[0]) and _is_like(down, experts.down)
        shape = summed_shape(context.gpu, experts.down, router.num_used + 1)
        if is_like_them and shape is not None:
            return shape, RoutedShared(gate_up, down, shared.output_gate, context.scratch((1,), np.float32))
    return summed_shape(context.gpu, experts.down, router.num_used), None


def _is_like(one: PackedMatrix, experts: PackedMatrix) -> bool:
    """Whether products on ``one`` are those on the matrix of an expert, but for the weights."""
    return (
        (one.format, one.num_rows, one.width, one.gated)
        == (experts.format, experts.num_rows, experts.width, experts.gated)
        and one.num_partitions == experts.num_partitions
        and not any(each is not None for each in (one.base, one.bias, experts.base, experts.bias))
    )


def _add_shared(context: Context, normed: DeviceArray, experts: Experts, out: DeviceArray) -> None:
    if experts.shared is not None:
        add_shared_expert(context, normed, experts.shared, out=out)


class _Multiply(Protocol):
    """How a product of experts is launched."""

    def __call__(self, product: Product, *, is_first: bool = False) -> None:
        """``is_first``: of those after the router."""


def _activate(
    context: Context,
    inputs: DeviceArray,
    experts: Experts,
    gating: Clamp | Geglu | None,
    multiply: _Multiply,
    out: DeviceArray,
) -> None:
    """Gates and up projections of ``inputs``, and what activates them, to ``out`` [pairs, F] float16."""
    if experts.gate_up[0].gated:
        product = Product(inputs, experts.gate_up[0], out, Epilogue.SWIGLU)
        if isinstance(gating, Clamp):
            product = product._replace(epilogue=Epilogue.CLAMPED_SWIGLU, alpha=gating.alpha, limit=gating.limit)
        elif gating is not None:
            product = product._replace(epilogue=Epilogue.GEGLU, alpha=gating.scale)
        multiply(product, is_first=True)
        return
    gate, up = experts.gate_up
    both = context.scratch((out.shape[0], 2 * out.shape[1]), np.float16)
    multiply(Product(inputs, gate, both, Epilogue.STORE_HALF), is_first=True)
    multiply(Product(inputs, up, both, Epilogue.STORE_HALF, column=gate.num_rows))
    if isinstance(gating, Geglu):
        geglu_rows(context, both, gating.scale, out=out)
    else:
        swiglu_rows(context, both, gating, out=out)


def _combine(
    context: Context,
    results: DeviceArray,
    routing: Routing,
    places: DeviceArray | None,
    output_scales: DeviceArray | None,
    adds: bool,
    out: DeviceArray,
) -> None:
    """Add the weighted sum of each token's ``results`` [pairs, H] to ``out``, or store it there.

    The routing weights of up to four tokens come from the logits.
    """
    (num_tokens, width), num_used = out.shape, routing.experts.shape[1]
    params = CombineParams(
        results=results.pointer,
        places=pointer_of(places),
        routing_weights=pointer_of(routing.routing_weights),
        logits=routing.logits.pointer,
        experts=routing.experts.pointer,
        output_scales=pointer_of(output_scales),
        out=out.pointer,
        num_tokens=num_tokens,
        num_experts=routing.logits.shape[1],
        num_used=num_used,
        width=width,
        adds=adds,
    )
    threads = 64 if routing.is_small else 256
    grid = (-(-width // (4 * threads)), num_tokens)
    kernel = f"moe_combine_{num_used}" if num_used in (4, 8) else "moe_combine"
    context.launch("moe/moe", kernel, grid, threads, params, shared_bytes=4 * num_used)
