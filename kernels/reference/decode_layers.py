"""All layers of a dense transformer and its head for a few tokens, one op after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.batch import LayerCache, Step
from kernels.reference.attention import plan_attention, rope_attention
from kernels.reference.decode_step import continue_rows
from kernels.reference.embedding import embed
from kernels.reference.matmul import Linear, Matrix, linear_residual
from kernels.reference.norm import norm_head, norm_linear, norm_swiglu
from kernels.reference.rope import rotation
from kernels.reference.sampling import draw_greedily
from kernels.weights.parameters import DenseModel, LayersSupport

Model = DenseModel[NDArray[np.float32], Matrix, Sequence[Linear]]


def decode_layers_support(model: Model) -> LayersSupport:  # noqa: ARG001 - the protocol's
    """Here it takes as long as the ops of single layers."""
    return LayersSupport("it is no faster on the CPU")


def decode_layers(
    model: Model,
    step: Step[NDArray[Any]],
    *,
    words: NDArray[np.float32],  # noqa: ARG001 - the protocol's
    out_caches: Sequence[LayerCache[NDArray[Any]]],
    out: NDArray[np.float32],
) -> None:
    """Logits ``out`` [R, V] of a step of T sequences with a token each.

    The tokens' K and V go to ``step.slots`` of ``out_caches``. ``step.greedy`` gets the ids of the largest logits.
    """
    if step.greedy is not None and step.greedy.output_positions is not None:
        continue_rows(step, out_caches[0].keys.shape[1])
    x = np.empty((step.token_ids.size, model.head.norm.weight.size), np.float32)
    embed(step.token_ids, model.embedding.table, scale=model.embedding.scale, out=x)
    by = rotation(step.positions, model.rope, step.sequence_lengths, step.sequence_rows)
    for layer, cache in zip(model.layers, out_caches, strict=True):
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
    norm_head(x, step.logit_rows, model.head.norm, model.head.projection, out=out)
    if step.greedy is not None:
        draw_greedily(out, step.greedy)
