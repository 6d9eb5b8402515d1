"""gpt-oss: mixture of experts, attention sinks, a sliding window on every other layer, YaRN (OpenAI, 2025).

RMSNorm, grouped-query attention with biases everywhere, top-k of the experts with a clamped SwiGLU. Formulas as in
``gpt_oss/torch/model.py`` and Hugging Face's ``modeling_gpt_oss``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec

from kernels.batch import AnyArray, Step
from kernels.devices.protocol import AnyExperts, AnyProjection, AnyRouter, Device
from kernels.weights.parameters import Attention, Clamp, RmsNorm
from worker.model.config import Architecture, ModelConfig
from worker.model.forward.layer_kinds import layers_to_run
from worker.model.forward.logit_tokens import attend, has_few_logits
from worker.model.forward.step_activations import StepActivations
from worker.model.kv_cache import KVCache
from worker.model.rope_scaling import plain_rope
from worker.model.weights import TensorSpec, Weights

# Of the architecture: the file has no keys for it.
CLAMP = Clamp(alpha=1.702, limit=7.0)


class _Layer(msgspec.Struct, frozen=True, eq=False):
    attention_norm: RmsNorm[AnyArray]
    qkv: AnyProjection
    attention: Attention[AnyArray]
    output: AnyProjection
    ffn_norm: RmsNorm[AnyArray]
    router: AnyRouter
    experts: AnyExperts


class GptOss:
    """Architecture ``gpt-oss``."""

    architectures: ClassVar[Mapping[str, Architecture]] = {"gpt-oss": Architecture(experts="required")}
    recompute_at: int | None = None

    def __init__(self, config: ModelConfig, weights: Weights, device: Device) -> None:
        self._config = config
        self._device = device
        self._embedding, self._head = weights.head("token_embd.weight", config.vocab_size, config.hidden)
        self._layers = [_load_layer(config, weights.layer(index), index) for index in range(config.num_layers)]
        self._run = layers_to_run(self._layers, device)
        self._norm = weights.rms_norm("output_norm", config.hidden, config.norm_epsilon)
        # The published configuration says truncate=false; GGUF has no key for it.
        self._rope = weights.rope(plain_rope(config, "neox", None, truncate=False))

    def forward(self, step: Step[AnyArray], cache: KVCache) -> AnyArray:
        """Run one step; returns logits [R, vocab] float32 of ``step.logit_rows``."""
        ops, acts = self._device.ops, StepActivations.allocate(self._config, self._device, step)
        x, last = acts.residual, len(self._layers) - 1
        ops.embed(step.token_ids, self._embedding, out=x)
        rotation = ops.rotation(step.positions, self._rope, step.sequence_lengths, step.sequence_rows)
        by_window = {layer.attention.window: layer.attention for layer in self._layers}
        plans = {window: ops.plan_attention(step, by_window[window]) for window in sorted(by_window)}
        for index in self._run:
            layer, layer_cache = self._layers[index], cache.layers[index]
            attention, plan = layer.attention, plans[layer.attention.window]
            ops.norm_linear(x, layer.attention_norm, layer.qkv, out=acts.qkv)
            has_fewer = index == last and has_few_logits(step)
            left = attend(ops, acts, rotation, attention, step, plan, has_fewer=has_fewer, out_cache=layer_cache)
            if left is None:
                break
            acts, x = left, left.residual
            ops.linear_residual(acts.attended, layer.output, out=x)
            ops.norm_moe_residual(x, layer.ffn_norm, layer.router, layer.experts, CLAMP, out=x)
        ops.norm_head(x, acts.logit_rows, self._norm, self._head, out=acts.logits)
        return acts.logits


def _load_layer(config: ModelConfig, weights: Weights, index: int) -> _Layer:
    def biased(name: str, num_outputs: int) -> TensorSpec:
        return TensorSpec(name, num_outputs, bias=True)

    return _Layer(
        attention_norm=weights.rms_norm("attn_norm", config.hidden, config.norm_epsilon),
        qkv=weights.projection(
            biased("attn_q", config.query_width),
            biased("attn_k", config.kv_width),
            biased("attn_v", config.kv_width),
            num_inputs=config.hidden,
        ),
        attention=Attention(
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            scale=config.head_dim**-0.5,
            window=0 if index % 2 else config.sliding_window,
            sinks=weights.vector("attn_sinks.weight", config.num_heads),
        ),
        output=weights.projection(biased("attn_output", config.hidden), num_inputs=config.query_width),
        ffn_norm=weights.rms_norm("post_attention_norm", config.hidden, config.norm_epsilon),
        router=weights.router(
            biased("ffn_gate_inp", config.num_experts), num_inputs=config.hidden, num_used=config.num_experts_used
        ),
        experts=weights.experts(
            biased("ffn_gate_exps", config.intermediate),
            biased("ffn_up_exps", config.intermediate),
            biased("ffn_down_exps", config.hidden),
            num_experts=config.num_experts,
            num_inputs=config.hidden,
        ),
    )
