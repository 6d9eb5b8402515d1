"""GPT-2: LayerNorm with bias, learned positions, multi-head attention, GELU (Radford et al., 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from kernels.batch import Step
from kernels.devices.protocol import Device
from kernels.weights.parameters import Attention, LayerNorm
from worker.model.config import Architecture, ModelConfig
from worker.model.kv_cache import KVCache, allocate_cache, bytes_per_block
from worker.model.weights import Part, Weights


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    attention_norm: LayerNorm
    qkv: Any
    output: Any
    ffn_norm: LayerNorm
    up: Any
    down: Any


class GPT2:
    """Architecture ``gpt2``."""

    architectures: ClassVar[Mapping[str, Architecture]] = {
        "gpt2": Architecture(norm_epsilon="attention.layer_norm_epsilon"),
    }
    recompute_at: int | None = None

    def __init__(self, config: ModelConfig, weights: Weights, device: Device) -> None:
        self.config = config
        self.device = device
        self._embedding, self._head = weights.head("token_embd.weight", config.vocab_size, config.hidden)
        self._positions = weights.table("position_embd.weight", config.context_length, config.hidden)
        self._layers = [self._load_layer(weights, f"blk.{index}") for index in range(config.num_layers)]
        self._norm = self._load_norm(weights, "output_norm")
        heads = config.num_heads, config.num_kv_heads, config.head_dim
        self._attention = Attention(*heads, scale=config.head_dim**-0.5)

    def _load_norm(self, weights: Weights, name: str) -> LayerNorm:
        weight, bias = (weights.vector(f"{name}.{part}", self.config.hidden) for part in ("weight", "bias"))
        return LayerNorm(weight, bias, self.config.norm_epsilon)

    def _load_layer(self, weights: Weights, name: str) -> _Layer:
        config = self.config
        query_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

        def projection(part: str, num_outputs: int, num_inputs: int) -> Any:
            return weights.projection(Part(f"{name}.{part}", num_outputs, bias=True), num_inputs=num_inputs)

        return _Layer(
            attention_norm=self._load_norm(weights, f"{name}.attn_norm"),
            qkv=projection("attn_qkv", query_width + 2 * kv_width, config.hidden),
            output=projection("attn_output", config.hidden, query_width),
            ffn_norm=self._load_norm(weights, f"{name}.ffn_norm"),
            up=projection("ffn_up", config.intermediate, config.hidden),
            down=projection("ffn_down", config.hidden, config.intermediate),
        )

    def bytes_per_block(self, block_tokens: int) -> int:
        """Bytes of one block of the KV cache, all layers together."""
        return bytes_per_block(self.config, self.device, block_tokens)

    def allocate_cache(self, num_blocks: int, block_tokens: int) -> KVCache:
        """A KV cache on the model's device."""
        return allocate_cache(self.config, self.device, num_blocks, block_tokens)

    @np.errstate(over="ignore", invalid="ignore")  # of damaged weights: the sampler refuses what comes out
    def forward(self, step: Step, cache: KVCache) -> Any:
        """Run one step; returns logits [R, vocab] float32 of ``step.logit_rows``."""
        config, ops, empty = self.config, self.device.ops, self.device.begin_step()
        activation_dtype = self.device.activation_dtype
        num_tokens = step.token_ids.size
        x = empty((num_tokens, config.hidden), np.float32)
        qkv = empty((num_tokens, (config.num_heads + 2 * config.num_kv_heads) * config.head_dim), activation_dtype)
        attended = empty((num_tokens, config.num_heads * config.head_dim), activation_dtype)
        activated = empty((num_tokens, config.intermediate), activation_dtype)
        logits = empty((step.logit_rows.size, config.vocab_size), np.float32)
        ops.embed_positions(step.token_ids, self._embedding, step.positions, self._positions, out=x)
        plan = ops.plan_attention(step, self._attention)
        for layer, layer_cache in zip(self._layers, cache.layers, strict=True):
            ops.norm_linear(x, layer.attention_norm, layer.qkv, out=qkv)
            ops.rope_attention(qkv, None, self._attention, step, plan, out_cache=layer_cache, out=attended)
            ops.linear_residual(attended, layer.output, out=x)
            ops.norm_gelu(x, layer.ffn_norm, layer.up, out=activated)
            ops.linear_residual(activated, layer.down, out=x)
        ops.norm_head(x, step.logit_rows, self._norm, self._head, out=logits)
        return logits
