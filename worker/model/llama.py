"""Llama, and families that differ from it in details: Mistral (the same), Qwen2 (biases), Qwen3 (head norms).

RMSNorm, RoPE, grouped-query attention, SwiGLU (Touvron et al., 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.device import Device
from kernels.layers import Pairing, RmsNorm
from kernels.step import Step
from worker.model.config import ModelConfig
from worker.model.kv_cache import KVCache, allocate_cache, bytes_per_block
from worker.model.rope_scaling import plain_rope
from worker.model.weights import Part, Weights


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    attention_norm: RmsNorm
    qkv: Any
    head_norms: tuple[RmsNorm, RmsNorm] | None
    output: Any
    ffn_norm: RmsNorm
    gate_up: Any
    down: Any


class Llama:
    """Architectures ``llama``, ``qwen2``, ``qwen3``."""

    recompute_at: int | None = None

    def __init__(self, config: ModelConfig, weights: Weights, device: Device) -> None:
        self.config = config
        self.device = device
        self._embedding, self._head = weights.head("token_embd.weight", config.vocab_size, config.hidden)
        self._layers = [self._load_layer(weights, f"blk.{index}") for index in range(config.num_layers)]
        self._norm = RmsNorm(weights.vector("output_norm.weight", config.hidden), config.norm_epsilon)
        factors = None
        if "rope_freqs.weight" in weights:
            factors = weights.host_vector("rope_freqs.weight", config.rope.num_dimensions // 2)
        # Llama's converter permutes the rows of Q and K so that a pair's elements are neighbours.
        pairing: Pairing = "normal" if config.architecture == "llama" else "neox"
        self._rope = weights.rope(plain_rope(config, pairing, factors, truncate=True))

    def _load_layer(self, weights: Weights, name: str) -> _Layer:
        config = self.config
        needs_bias = config.architecture == "qwen2"
        query_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

        def part(part: str, num_outputs: int, needs_bias: bool = False) -> Part:
            bias = needs_bias or f"{name}.{part}.bias" in weights  # some Llamas have them too (attention_bias)
            return Part(f"{name}.{part}", num_outputs, bias)

        def norm(part: str, width: int) -> RmsNorm:
            return RmsNorm(weights.vector(f"{name}.{part}.weight", width), config.norm_epsilon)

        return _Layer(
            attention_norm=norm("attn_norm", config.hidden),
            qkv=weights.projection(
                part("attn_q", query_width, needs_bias),
                part("attn_k", kv_width, needs_bias),
                part("attn_v", kv_width, needs_bias),
                num_inputs=config.hidden,
            ),
            head_norms=(norm("attn_q_norm", config.head_dim), norm("attn_k_norm", config.head_dim))
            if config.architecture == "qwen3"
            else None,
            output=weights.projection(part("attn_output", config.hidden), num_inputs=query_width),
            ffn_norm=norm("ffn_norm", config.hidden),
            gate_up=weights.gate_up(
                part("ffn_gate", config.intermediate), part("ffn_up", config.intermediate), num_inputs=config.hidden
            ),
            down=weights.projection(part("ffn_down", config.hidden), num_inputs=config.intermediate),
        )

    def bytes_per_block(self, block_tokens: int) -> int:
        return bytes_per_block(self.config, self.device, block_tokens)

    def allocate_cache(self, num_blocks: int, block_tokens: int) -> KVCache:
        return allocate_cache(self.config, self.device, num_blocks, block_tokens)

    @np.errstate(over="ignore", invalid="ignore")  # of damaged weights: the sampler refuses what comes out
    def forward(self, step: Step, cache: KVCache) -> Any:
        config, ops, empty = self.config, self.device.ops, self.device.begin_step()
        activation_dtype = self.device.activation_dtype
        num_tokens = step.token_ids.size
        x = empty((num_tokens, config.hidden), np.float32)
        qkv = empty((num_tokens, (config.num_heads + 2 * config.num_kv_heads) * config.head_dim), activation_dtype)
        attended = empty((num_tokens, config.num_heads * config.head_dim), activation_dtype)
        activated = empty((num_tokens, config.intermediate), activation_dtype)
        logits = empty((step.logit_rows.size, config.vocab_size), np.float32)
        ops.embed(step.token_ids, self._embedding, out=x)
        rotation = ops.rotation(step.positions, self._rope, step.sequence_lengths, step.sequence_rows)
        heads = config.num_heads, config.num_kv_heads, config.head_dim
        plan = ops.plan_attention(step, *heads, window=config.sliding_window)
        for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            ops.norm_linear(x, layer.attention_norm, layer.qkv, out=qkv)
            ops.rope_attention(
                qkv,
                rotation,
                layer.head_norms,
                config.num_heads,
                step,
                plan,
                scale=config.head_dim**-0.5,
                window=config.sliding_window,
                sinks=None,
                out_keys=keys,
                out_values=values,
                out=attended,
            )
            ops.linear_residual(attended, layer.output, out=x)
            ops.norm_swiglu(x, layer.ffn_norm, layer.gate_up, out=activated)
            ops.linear_residual(activated, layer.down, out=x)
        ops.norm_head(x, step.logit_rows, self._norm, self._head, out=logits)
        return logits
