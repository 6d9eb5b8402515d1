"""GPT-2: LayerNorm with bias, learned positions, multi-head attention, GELU (Radford et al., 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec

from kernels.batch import AnyArray, Step
from kernels.devices.protocol import AnyProjection, Device
from kernels.weights.parameters import Attention, LayerNorm
from worker.model.config import Architecture, ModelConfig
from worker.model.forward.logit_tokens import attend, has_few_logits
from worker.model.forward.step_activations import StepActivations
from worker.model.kv_cache import KVCache
from worker.model.weights import TensorSpec, Weights


class _Layer(msgspec.Struct, frozen=True, eq=False):
    attention_norm: LayerNorm[AnyArray]
    qkv: AnyProjection
    output: AnyProjection
    ffn_norm: LayerNorm[AnyArray]
    up: AnyProjection
    down: AnyProjection


class GPT2:
    """Architecture ``gpt2``."""

    architectures: ClassVar[Mapping[str, Architecture]] = {
        "gpt2": Architecture(norm_epsilon="attention.layer_norm_epsilon"),
    }
    recompute_at: int | None = None

    def __init__(self, config: ModelConfig, weights: Weights, device: Device) -> None:
        self._config = config
        self._device = device
        self._embedding, self._head = weights.head("token_embd.weight", config.vocab_size, config.hidden)
        self._positions = weights.table("position_embd.weight", config.context_length, config.hidden)
        self._layers = [_load_layer(config, weights.layer(index)) for index in range(config.num_layers)]
        self._norm = weights.layer_norm("output_norm", config.hidden, config.norm_epsilon)
        heads = config.num_heads, config.num_kv_heads, config.head_dim
        self._attention: Attention[AnyArray] = Attention(*heads, scale=config.head_dim**-0.5)

    def forward(self, step: Step[AnyArray], cache: KVCache) -> AnyArray:
        """Run one step; returns logits [R, vocab] float32 of ``step.logit_rows``."""
        ops, acts = self._device.ops, StepActivations.allocate(self._config, self._device, step)
        x = acts.residual
        ops.embed_positions(step.token_ids, self._embedding, step.positions, self._positions, out=x)
        plan = ops.plan_attention(step, self._attention)
        for layer, layer_cache in zip(self._layers, cache.layers, strict=True):
            ops.norm_linear(x, layer.attention_norm, layer.qkv, out=acts.qkv)
            has_fewer = layer is self._layers[-1] and has_few_logits(step)
            left = attend(ops, acts, None, self._attention, step, plan, has_fewer=has_fewer, out_cache=layer_cache)
            if left is None:
                break
            acts, x = left, left.residual
            ops.linear_residual(acts.attended, layer.output, out=x)
            ops.norm_gelu(x, layer.ffn_norm, layer.up, out=acts.activated)
            ops.linear_residual(acts.activated, layer.down, out=x)
        ops.norm_head(x, acts.logit_rows, self._norm, self._head, out=acts.logits)
        return acts.logits


def _load_layer(config: ModelConfig, weights: Weights) -> _Layer:
    def projection(name: str, num_outputs: int, num_inputs: int) -> AnyProjection:
        return weights.projection(TensorSpec(name, num_outputs, bias=True), num_inputs=num_inputs)

    return _Layer(
        attention_norm=weights.layer_norm("attn_norm", config.hidden, config.norm_epsilon),
        qkv=projection("attn_qkv", config.query_width + 2 * config.kv_width, config.hidden),
        output=projection("attn_output", config.hidden, config.query_width),
        ffn_norm=weights.layer_norm("ffn_norm", config.hidden, config.norm_epsilon),
        up=projection("ffn_up", config.intermediate, config.hidden),
        down=projection("ffn_down", config.hidden, config.intermediate),
    )
