"""All layers of a dense transformer and its head for a few tokens, one op after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.batch import LayerCache, Step
from kernels.reference.attention import plan_attention, rope_attention
from kernels.reference.matmul import Linear, linear_residual
from kernels.reference.norm import norm_head, norm_linear, norm_swiglu
from kernels.reference.rope import Rotation
from kernels.weights.parameters import DenseLayer, OutputHead

Layer = DenseLayer[NDArray[np.float32], Sequence[Linear]]


def decode_layers_obstacle(layers: Sequence[Layer], num_tokens: int) -> str | None:  # noqa: ARG001 - the protocol's
    """Here it takes as long as the ops of single layers."""
    return "it is no faster on the CPU"


def decode_layers(
    layers: Sequence[Layer],
    head: OutputHead[NDArray[np.float32], Sequence[Linear]],
    by: Rotation,
    step: Step[NDArray[Any]],
    x: NDArray[np.float32],
    *,
    out_caches: Sequence[LayerCache[NDArray[Any]]],
    out: NDArray[np.float32],
) -> None:
    """Logits ``out`` [R, V] of a step of T sequences with a token each, whose embeddings are ``x`` [T, H].

    The tokens' K and V go to ``step.slots`` of ``out_caches``, and ``x`` is used up.
    """
    for layer, cache in zip(layers, out_caches, strict=True):
        attention = layer.attention
        qkv = np.empty((len(x), attention.qkv_width), np.float32)
        attended = np.empty((len(x), attention.query_width), np.float32)
        norm_linear(x, layer.attention_norm, layer.qkv, out=qkv)
        plan = plan_attention(step, attention)
        rope_attention(qkv, by, attention, step, plan, out_cache=cache, out=attended)
        linear_residual(attended, layer.output, out=x)
        activated = np.empty((len(x), layer.down[0].matrix.shape[1]), np.float32)
        norm_swiglu(x, layer.ffn_norm, layer.gate_up, out=activated)
        linear_residual(activated, layer.down, out=x)
    norm_head(x, step.logit_rows, head.norm, head.projection, out=out)
