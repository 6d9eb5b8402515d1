"""GPT-2: LayerNorm with bias, learned positions, multi-head attention, GELU (Radford et al., 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.device import Device
from kernels.reference.matmul import Linear
from kernels.reference.norm import LayerNorm
from worker.engine.batch import Batch
from worker.model.config import ModelConfig
from worker.model.kv_cache import KVCache, allocate_cache, bytes_per_block
from worker.model.weights import Weights


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    attention_norm: LayerNorm
    qkv: Linear
    output: Linear
    ffn_norm: LayerNorm
    up: Linear
    down: Linear


class GPT2:
    """Architecture ``gpt2``."""

    recompute_at: int | None = None

    def __init__(self, config: ModelConfig, weights: Weights, device: Device) -> None:
        self.config = config
        self._device = device
        self._embedding = weights.matrix("token_embd.weight", config.vocab_size, config.hidden)
        self._positions = weights.matrix("position_embd.weight", config.context_length, config.hidden)
        self._layers = [self._load_layer(weights, f"blk.{index}") for index in range(config.num_layers)]
        self._norm = self._load_norm(weights, "output_norm")
        tied = "output.weight" not in weights
        self._head = (
            Linear(self._embedding) if tied else weights.linear("output", config.vocab_size, config.hidden, bias=False)
        )

    def _load_norm(self, weights: Weights, name: str) -> LayerNorm:
        weight, bias = (weights.vector(f"{name}.{part}", self.config.hidden) for part in ("weight", "bias"))
        return LayerNorm(weight, bias, self.config.norm_epsilon)

    def _load_layer(self, weights: Weights, name: str) -> _Layer:
        config = self.config
        query_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

        def linear(part: str, num_outputs: int, num_inputs: int) -> Linear:
            return weights.linear(f"{name}.{part}", num_outputs, num_inputs, bias=True)

        return _Layer(
            attention_norm=self._load_norm(weights, f"{name}.attn_norm"),
            qkv=linear("attn_qkv", query_width + 2 * kv_width, config.hidden),
            output=linear("attn_output", config.hidden, query_width),
            ffn_norm=self._load_norm(weights, f"{name}.ffn_norm"),
            up=linear("ffn_up", config.intermediate, config.hidden),
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
        ops.embed_positions(batch.token_ids, self._embedding, batch.positions, self._positions, out=x)
        for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            ops.norm_linear(x, layer.attention_norm, (layer.qkv,), out=qkv)
            ops.rope_write(qkv, batch.slots, None, None, config.num_heads, out_keys=keys, out_values=values)
            ops.paged_attention(
                qkv,
                config.num_heads,
                keys,
                values,
                batch.positions,
                batch.query_starts,
                batch.block_tables,
                scale=config.head_dim**-0.5,
                window=0,
                sinks=None,
                out=attended,
            )
            ops.linear_residual(attended, layer.output, out=x)
            ops.norm_gelu(x, layer.ffn_norm, layer.up, out=activated)
            ops.linear_residual(activated, layer.down, out=x)
        ops.norm_head(x, batch.logit_rows, self._norm, self._head, out=logits)
        return logits
