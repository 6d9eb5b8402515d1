"""Llama, and families that differ from it in details: Mistral (the same), Qwen2 (biases), Qwen3 (head norms).

RMSNorm, RoPE, grouped-query attention, SwiGLU (Touvron et al., 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.device import Device
from kernels.reference.matmul import Linear
from kernels.reference.norm import RmsNorm
from kernels.reference.rope import Pairing
from worker.engine.batch import Batch
from worker.model.config import ModelConfig
from worker.model.kv_cache import KVCache, allocate_cache, bytes_per_block
from worker.model.rope_scaling import plain_rope
from worker.model.weights import Weights


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    attention_norm: RmsNorm
    qkv: tuple[Linear, ...]
    head_norms: tuple[RmsNorm, RmsNorm] | None
    output: Linear
    ffn_norm: RmsNorm
    gate_up: tuple[Linear, ...]
    down: Linear


class Llama:
    """Architectures ``llama``, ``qwen2``, ``qwen3``."""

    recompute_at: int | None = None

    def __init__(self, config: ModelConfig, weights: Weights, device: Device) -> None:
        self.config = config
        self._device = device
        self._embedding = weights.matrix("token_embd.weight", config.vocab_size, config.hidden)
        self._layers = [self._load_layer(weights, f"blk.{index}") for index in range(config.num_layers)]
        self._norm = RmsNorm(weights.vector("output_norm.weight", config.hidden), config.norm_epsilon)
        tied = "output.weight" not in weights
        self._head = (
            Linear(self._embedding) if tied else weights.linear("output", config.vocab_size, config.hidden, bias=False)
        )
        factors = None
        if "rope_freqs.weight" in weights:
            factors = weights.host_vector("rope_freqs.weight", config.rope.num_dimensions // 2)
        # Llama's converter permutes the rows of Q and K so that a pair's elements are neighbours.
        pairing: Pairing = "normal" if config.architecture == "llama" else "neox"
        self._rope = plain_rope(config, pairing, factors, truncate=True)

    def _load_layer(self, weights: Weights, name: str) -> _Layer:
        config = self.config
        needs_bias = config.architecture == "qwen2"
        query_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

        def linear(part: str, num_outputs: int, num_inputs: int, needs_bias: bool = False) -> Linear:
            bias = needs_bias or f"{name}.{part}.bias" in weights  # some Llamas have them too (attention_bias)
            return weights.linear(f"{name}.{part}", num_outputs, num_inputs, bias=bias)

        def norm(part: str, width: int) -> RmsNorm:
            return RmsNorm(weights.vector(f"{name}.{part}.weight", width), config.norm_epsilon)

        return _Layer(
            attention_norm=norm("attn_norm", config.hidden),
            qkv=(
                linear("attn_q", query_width, config.hidden, needs_bias),
                linear("attn_k", kv_width, config.hidden, needs_bias),
                linear("attn_v", kv_width, config.hidden, needs_bias),
            ),
            head_norms=(norm("attn_q_norm", config.head_dim), norm("attn_k_norm", config.head_dim))
            if config.architecture == "qwen3"
            else None,
            output=linear("attn_output", config.hidden, query_width),
            ffn_norm=norm("ffn_norm", config.hidden),
            gate_up=(
                linear("ffn_gate", config.intermediate, config.hidden),
                linear("ffn_up", config.intermediate, config.hidden),
            ),
            down=linear("ffn_down", config.hidden, config.intermediate),
        )

    def bytes_per_block(self, block_tokens: int) -> int:
        return bytes_per_block(self.config, self._device, block_tokens)

    def allocate_cache(self, num_blocks: int, block_tokens: int) -> KVCache:
        return allocate_cache(self.config, self._device, num_blocks, block_tokens)

    @np.errstate(over="ignore", invalid="ignore")  # of damaged weights: the sampler refuses what comes out
    def forward(self, batch: Batch, cache: KVCache) -> NDArray[np.float32]:
        config, ops, empty = self.config, self._device.ops, self._device.empty
        num_tokens = batch.token_ids.size
        x = empty((num_tokens, config.hidden), np.float32)
        qkv = empty((num_tokens, (config.num_heads + 2 * config.num_kv_heads) * config.head_dim), np.float32)
        attended = empty((num_tokens, config.num_heads * config.head_dim), np.float32)
        activated = empty((num_tokens, config.intermediate), np.float32)
        logits: NDArray[np.float32] = empty((batch.logit_rows.size, config.vocab_size), np.float32)
        ops.embed(batch.token_ids, self._embedding, out=x)
        rotation = ops.rotation(batch.positions, self._rope)
        for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            ops.norm_linear(x, layer.attention_norm, layer.qkv, out=qkv)
            ops.rope_write(
                qkv, batch.slots, rotation, layer.head_norms, config.num_heads, out_keys=keys, out_values=values
            )
            ops.paged_attention(
                qkv,
                config.num_heads,
                keys,
                values,
                batch.positions,
                batch.query_starts,
                batch.block_tables,
                scale=config.head_dim**-0.5,
                window=config.sliding_window,
                sinks=None,
                out=attended,
            )
            ops.linear_residual(attended, layer.output, out=x)
            ops.norm_swiglu(x, layer.ffn_norm, layer.gate_up, out=activated)
            ops.linear_residual(activated, layer.down, out=x)
        ops.norm_head(x, batch.logit_rows, self._norm, self._head, out=logits)
        return logits
