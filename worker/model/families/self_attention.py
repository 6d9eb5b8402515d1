"""The attention of newer models: norms of single heads, and layers that differ in their window or have none of it."""

from __future__ import annotations

import msgspec

from kernels.batch import AnyArray
from kernels.devices.protocol import AnyProjection
from kernels.weights.parameters import Attention
from worker.model.config import ModelConfig
from worker.model.layer_config import LayerConfig
from worker.model.weights import RowPart, TensorSpec, Weights


class SelfAttention(msgspec.Struct, frozen=True, eq=False):
    """What a layer projects of a token, queries, keys and values, how it attends with them, and what is made of it."""

    qkv: AnyProjection
    attention: Attention[AnyArray]
    output: AnyProjection


def load_attention(
    config: ModelConfig, layer: LayerConfig, weights: Weights, query_rows: RowPart | None = None
) -> SelfAttention:
    """That of a ``layer`` whose ``weights`` are given, without biases; ``query_rows`` are those of ``attn_q`` to take.

    Raises `ModelLoadFailed`.
    """
    query_norm, key_norm = (
        weights.rms_norm(name, layer.head_dim, config.norm_epsilon) for name in ("attn_q_norm", "attn_k_norm")
    )
    attention = Attention(
        config.num_heads,
        layer.num_kv_heads,
        layer.head_dim,
        scale=layer.head_dim**-0.5,
        window=layer.window,
        head_norms=(query_norm, key_norm),
    )
    qkv = weights.projection(
        TensorSpec("attn_q", attention.query_width, bias=False, part=query_rows),
        TensorSpec("attn_k", layer.kv_width, bias=False),
        TensorSpec("attn_v", layer.kv_width, bias=False),
        num_inputs=config.hidden,
    )
    output = TensorSpec("attn_output", config.hidden, bias=False)
    return SelfAttention(qkv, attention, weights.projection(output, num_inputs=attention.query_width))
