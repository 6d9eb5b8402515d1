"""Phi-3: a Llama with QKV and gate/up fused, a sliding window, and longrope in its long-context variants.

(Abdin et al., 2024.) Longrope keeps two sets of rotary frequencies, for sequences within the original context length
and for longer ones; a sequence that grows beyond it is computed anew with the other set (`recompute_at`), as the
Hugging Face implementation has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.device import Device
from kernels.layers import RmsNorm
from kernels.step import Step
from worker.model.config import ModelConfig
from worker.model.kv_cache import KVCache, allocate_cache, bytes_per_block
from worker.model.rope_scaling import long_rope, plain_rope
from worker.model.weights import Part, Weights


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    attention_norm: RmsNorm
    qkv: Any
    output: Any
    ffn_norm: RmsNorm
    gate_up: Any
    down: Any


class Phi3:
    """Architecture ``phi3``."""

    def __init__(self, config: ModelConfig, weights: Weights, device: Device) -> None:
        self.config = config
        self.device = device
        self._embedding, self._head = weights.head("token_embd.weight", config.vocab_size, config.hidden)
        self._layers = [self._load_layer(weights, f"blk.{index}") for index in range(config.num_layers)]
        self._norm = RmsNorm(weights.vector("output_norm.weight", config.hidden), config.norm_epsilon)
        self.recompute_at: int | None = None
        if "rope_factors_long.weight" in weights:
            num_pairs = config.rope.num_dimensions // 2
            short, long = (weights.host_vector(f"rope_factors_{name}.weight", num_pairs) for name in ("short", "long"))
            rope = long_rope(config, short, long)
            self.recompute_at = rope.long_after
        else:
            rope = plain_rope(config, "neox", None, truncate=True)
        self._rope = weights.rope(rope)

    def _load_layer(self, weights: Weights, name: str) -> _Layer:
        config = self.config
        query_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

        def projection(part: str, num_outputs: int, num_inputs: int) -> Any:
            return weights.projection(Part(f"{name}.{part}", num_outputs, bias=False), num_inputs=num_inputs)

        def norm(part: str) -> RmsNorm:
            return RmsNorm(weights.vector(f"{name}.{part}.weight", config.hidden), config.norm_epsilon)

        return _Layer(
            attention_norm=norm("attn_norm"),
            qkv=projection("attn_qkv", query_width + 2 * kv_width, config.hidden),
            output=projection("attn_output", config.hidden, query_width),
            ffn_norm=norm("ffn_norm"),
            gate_up=weights.gate_up(
                Part(f"{name}.ffn_up", 2 * config.intermediate, bias=False), num_inputs=config.hidden
            ),
            down=projection("ffn_down", config.hidden, config.intermediate),
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
                None,
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
