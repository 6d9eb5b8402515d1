"""All layers of a dense transformer for a few tokens, one op after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.batch import LayerCache, Step
from kernels.reference.attention import plan_attention, rope_attention
from kernels.reference.matmul import Linear, linear_residual
from kernels.reference.norm import norm_linear, norm_swiglu
from kernels.reference.rope import Rotation
from kernels.weights.parameters import DenseLayer

Layer = DenseLayer[NDArray[np.float32], Sequence[Linear]]


def decode_layers_obstacle(layers: Sequence[Layer], num_tokens: int) -> str | None:  # noqa: ARG001 - the protocol's
    """Here it takes as long as the ops of single layers."""
    return "it is no faster on the CPU"


def decode_layers(
    layers: Sequence[Layer],
    by: Rotation,
    step: Step[NDArray[Any]],
    *,
    out_caches: Sequence[LayerCache[NDArray[Any]]],
    out: NDArray[np.float32],
) -> None:
    """What ``layers`` make of the residual stream ``out`` [T, H] of a step of T sequences with a token each, in place.

    The tokens' K and V go to ``step.slots`` of ``out_caches``.
    """
    for layer, cache in zip(layers, out_caches, strict=True):
        attention = layer.attention
        qkv = np.empty((len(out), attention.qkv_width), np.float32)
        attended = np.empty((len(out), attention.query_width), np.float32)
        norm_linear(out, layer.attention_norm, layer.qkv, out=qkv)
        plan = plan_attention(step, attention)
        rope_attention(qkv, by, attention, step, plan, out_cache=cache, out=attended)
        linear_residual(attended, layer.output, out=out)
        activated = np.empty((len(out), layer.down[0].matrix.shape[1]), np.float32)
        norm_swiglu(out, layer.ffn_norm, layer.gate_up, out=activated)
        linear_residual(activated, layer.down, out=out)
