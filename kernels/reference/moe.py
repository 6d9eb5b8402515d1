"""Mixture of experts: router, chosen experts, weighted sum."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from kernels.reference.activation import clamped_swiglu, geglu, swiglu
from kernels.reference.matmul import Linear, Matrix, linear
from kernels.reference.norm import normalise
from kernels.weights.parameters import Clamp, Geglu, Norm

Float32 = NDArray[np.float32]


class Expert(msgspec.Struct, frozen=True, eq=False):
    """One feed-forward network among several: F outputs of ``gate`` and ``up``, H of ``down``."""

    gate: Linear
    up: Linear
    down: Linear


class SharedExpert(msgspec.Struct, frozen=True, eq=False):
    """The network that every token goes through; what it makes of x is multiplied by sigmoid(``output_gate`` x)."""

    network: Expert
    output_gate: Float32  # [H]


class Experts(msgspec.Struct, frozen=True, eq=False):
    """The networks that a router chooses from, and the one beside them that it need not choose."""

    routed: Sequence[Expert]
    shared: SharedExpert | None = None


class Router(msgspec.Struct, frozen=True, eq=False):
    """Chooses experts: the ``num_used`` largest of weight x + bias.

    Experts are given x times ``input_weight``, and what they make is multiplied by their ``output_scales``. Their
    routing weights are the softmax over those that are chosen or, if not ``renormalises``, over all.
    """

    weight: Matrix  # [experts, H]
    bias: Float32 | None  # [experts]
    num_used: int
    input_weight: Float32 | None = None  # [H]
    output_scales: Float32 | None = None  # [experts]
    renormalises: bool = True


def norm_moe_residual(
    x: Float32,
    norm: Norm[Float32],
    router: Router,
    experts: Experts,
    gating: Clamp | Geglu | None,
    *,
    adds: bool = True,
    out: Float32,
) -> None:
    """Norm, router, the best experts of each token, and their sum added to ``out`` [T, H], or stored there.

    ``x`` [T, H] may be ``out``. Each token's experts weigh as the softmax of their router logits (equal logits: the
    lower expert first) and are summed in the order of their rank, then comes the shared one; so a token's result is its
    own. Experts have a SwiGLU, unless ``gating`` says otherwise.
    """
    normed = normalise(norm, x)
    logits = np.empty((x.shape[0], len(experts.routed)), np.float32)
    linear(normed, (Linear(router.weight, router.bias),), out=logits)
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, : router.num_used]
    exponentials = np.exp(logits - np.take_along_axis(logits, chosen[:, :1], axis=1))
    routing_weights = np.take_along_axis(exponentials, chosen, axis=1)
    weighed = routing_weights if router.renormalises else exponentials
    routing_weights /= weighed.sum(axis=1, keepdims=True)
    if router.output_scales is not None:
        routing_weights *= router.output_scales[chosen]
    inputs = normed if router.input_weight is None else normed * router.input_weight
    results = np.empty((x.shape[0], router.num_used, x.shape[1]), np.float32)
    for index in np.unique(chosen):
        tokens, ranks = np.nonzero(chosen == index)
        results[tokens, ranks] = _feed_forward(inputs[tokens], experts.routed[index], gating)
    if not adds:
        out[:] = 0
    for rank in range(router.num_used):
        out += routing_weights[:, rank, None] * results[:, rank]
    if experts.shared is not None:
        out += _gated(normed, experts.shared, gating)


def _gated(normed: Float32, shared: SharedExpert, gating: Clamp | Geglu | None) -> Float32:
    with np.errstate(over="ignore"):  # exp of a large number is inf, and its reciprocal the right zero
        share = 1 / (1 + np.exp(-(normed * shared.output_gate).sum(axis=1, keepdims=True)))
    result = _feed_forward(normed, shared.network, gating)
    result *= share
    return result


def _feed_forward(x: Float32, expert: Expert, gating: Clamp | Geglu | None) -> Float32:
    gate, up = (np.empty((x.shape[0], layer.matrix.shape[0]), np.float32) for layer in (expert.gate, expert.up))
    linear(x, (expert.gate,), out=gate)
    linear(x, (expert.up,), out=up)
    if gating is None:
        swiglu(gate, up, out=gate)
    elif isinstance(gating, Geglu):
        geglu(gate, up, gating.scale, out=gate)
    else:
        clamped_swiglu(gate, up, gating.alpha, gating.limit, out=gate)
    result = np.empty_like(x)
    linear(gate, (expert.down,), out=result)
    return result
