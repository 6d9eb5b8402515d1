"""Muse Glimmer (Meta, 2026): windows and rotations on three of four layers, gates of attention, norms after each block.

The embedding is normed; what is added to the residual stream, too, with an epsilon that no key tells. Layers without a
window are not rotated. Logits are scaled, and then within a soft cap. Formulas as in Hugging Face's
``modeling_muse_glimmer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec
import numpy as np

from kernels.batch import AnyArray, Step
from kernels.devices.protocol import AnyProjection, Device
from kernels.weights.parameters import RmsNorm
from worker.model.config import Architecture, ModelConfig
from worker.model.families.feed_forward import FeedForward, load_feed_forward
from worker.model.families.self_attention import SelfAttention, load_attention
from worker.model.forward.logit_tokens import attend, has_few_logits
from worker.model.forward.step_activations import StepActivations
from worker.model.kv_cache import KVCache
from worker.model.layer_config import LayerPattern
from worker.model.rope_scaling import plain_rope
from worker.model.weights import TensorSpec, Weights

POST_NORM_EPSILON = 1e-8


class _Layer(msgspec.Struct, frozen=True, eq=False):
    norm: RmsNorm[AnyArray]
    attention: SelfAttention
    gate: AnyProjection
    post_norm: RmsNorm[AnyArray]
    ffn_norm: RmsNorm[AnyArray]
    feed_forward: FeedForward
    post_ffn_norm: RmsNorm[AnyArray]


class MuseGlimmer:
    """Architecture ``muse-glimmer``."""

    architectures: ClassVar[Mapping[str, Architecture]] = {
        "muse-glimmer": Architecture(
            keys=frozenset({"attention.sliding_window_pattern", "logit_scale", "final_logit_softcapping"}),
            layers=LayerPattern(full_interval=4),
        )
    }
    recompute_at: int | None = None

    def __init__(self, config: ModelConfig, weights: Weights, device: Device) -> None:
        self._config = config
        self._device = device
        self._embedding, self._head = weights.head("token_embd.weight", config.vocab_size, config.hidden)
        ones = device.store.vector(np.ones(config.hidden, np.float32))
        self._embedding_norm: RmsNorm[AnyArray] = RmsNorm(ones, config.norm_epsilon)
        self._layers = [_load_layer(config, weights.layer(index), index) for index in range(config.num_layers)]
        self._norm = weights.rms_norm(
            "output_norm", config.hidden, config.norm_epsilon, divisor=1 / config.scales.logits
        )
        self._rope = weights.rope(plain_rope(config, "normal", None, truncate=True))
        self._attentions = {layer.attention.attention.window: layer.attention.attention for layer in self._layers}

    def forward(self, step: Step[AnyArray], cache: KVCache) -> AnyArray:
        """Run one step; returns logits [R, vocab] float32 of ``step.logit_rows``."""
        ops, config = self._device.ops, self._config
        acts = StepActivations.allocate(config, self._device, step, (config.query_width,))
        x, (gates,) = acts.residual, acts.own
        ops.embed(step.token_ids, self._embedding, out=x)
        ops.norm_stream(x, self._embedding_norm, out=x)
        rotation = ops.rotation(step.positions, self._rope, step.sequence_lengths, step.sequence_rows)
        plans = {window: ops.plan_attention(step, self._attentions[window]) for window in sorted(self._attentions)}
        for layer, layer_cache in zip(self._layers, cache.layers, strict=True):
            attention = layer.attention.attention
            by, plan = rotation if attention.window else None, plans[attention.window]
            ops.norm_linear(x, layer.norm, layer.attention.qkv, out=acts.qkv)
            has_fewer = layer is self._layers[-1] and has_few_logits(step)
            left = attend(ops, acts, by, attention, step, plan, has_fewer=has_fewer, out_cache=layer_cache)
            if left is None:
                break
            acts, x, (gates,) = left, left.residual, left.own
            ops.norm_linear(x, layer.norm, layer.gate, out=gates)
            ops.gate(acts.attended, gates, out=acts.attended)
            ops.linear_norm_residual(acts.attended, layer.attention.output, layer.post_norm, out=x)
            ops.norm_swiglu(x, layer.ffn_norm, layer.feed_forward.gate_up, out=acts.activated)
            ops.linear_norm_residual(acts.activated, layer.feed_forward.down, layer.post_ffn_norm, out=x)
        ops.norm_head(x, acts.logit_rows, self._norm, self._head, softcap=config.logit_softcap, out=acts.logits)
        return acts.logits


def _load_layer(config: ModelConfig, weights: Weights, index: int) -> _Layer:
    def norm(name: str, epsilon: float = config.norm_epsilon) -> RmsNorm[AnyArray]:
        return weights.rms_norm(name, config.hidden, epsilon)

    return _Layer(
        norm=norm("attn_norm"),
        attention=load_attention(config, config.layers[index], weights),
        gate=weights.projection(TensorSpec("attn_gate", config.query_width, bias=False), num_inputs=config.hidden),
        post_norm=norm("post_attention_norm", POST_NORM_EPSILON),
        ffn_norm=norm("ffn_norm"),
        feed_forward=load_feed_forward(config, weights),
        post_ffn_norm=norm("post_ffw_norm", POST_NORM_EPSILON),
    )
