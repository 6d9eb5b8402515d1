"""gpt-oss: mixture of experts, attention sinks, a sliding window on every other layer, YaRN (OpenAI, 2025).

RMSNorm, grouped-query attention with biases everywhere, top-k of the experts with a clamped SwiGLU. Formulas as in
``gpt_oss/torch/model.py`` and Hugging Face's ``modeling_gpt_oss``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.device import Device
from kernels.reference.matmul import Linear
from kernels.reference.moe import Expert
from kernels.reference.norm import RmsNorm
from worker.engine.batch import Batch
from worker.model.config import ModelConfig
from worker.model.kv_cache import KVCache, allocate_cache, bytes_per_block
from worker.model.rope_scaling import plain_rope
from worker.model.weights import Weights

# Constants of the architecture: the file has no keys for them.
SWIGLU_ALPHA = 1.702
SWIGLU_LIMIT = 7.0


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    attention_norm: RmsNorm
    qkv: tuple[Linear, ...]
    window: int
    sinks: Any  # [num_heads]
    output: Linear
    ffn_norm: RmsNorm
    router: Linear
    experts: tuple[Expert, ...]


class GptOss:
    """Architecture ``gpt-oss``."""

    recompute_at: int | None = None

    def __init__(self, config: ModelConfig, weights: Weights, device: Device) -> None:
        self.config = config
        self._device = device
        self._embedding = weights.matrix("token_embd.weight", config.vocab_size, config.hidden)
        self._layers = [self._load_layer(weights, index) for index in range(config.num_layers)]
        self._norm = RmsNorm(weights.vector("output_norm.weight", config.hidden), config.norm_epsilon)
        self._head = weights.linear("output", config.vocab_size, config.hidden, bias=False)
        # The published configuration says truncate=false; GGUF has no key for it.
        self._rope = plain_rope(config, "neox", None, truncate=False)

    def _load_layer(self, weights: Weights, index: int) -> _Layer:
        config, name = self.config, f"blk.{index}"
        query_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

        def linear(part: str, num_outputs: int, num_inputs: int) -> Linear:
            return weights.linear(f"{name}.{part}", num_outputs, num_inputs, bias=True)

        def norm(part: str) -> RmsNorm:
            return RmsNorm(weights.vector(f"{name}.{part}.weight", config.hidden), config.norm_epsilon)

        return _Layer(
            attention_norm=norm("attn_norm"),
            qkv=(
                linear("attn_q", query_width, config.hidden),
                linear("attn_k", kv_width, config.hidden),
                linear("attn_v", kv_width, config.hidden),
            ),
            window=0 if index % 2 else config.sliding_window,
            sinks=weights.vector(f"{name}.attn_sinks.weight", config.num_heads),
            output=linear("attn_output", config.hidden, query_width),
            ffn_norm=norm("post_attention_norm"),
            router=linear("ffn_gate_inp", config.num_experts, config.hidden),
            experts=self._load_experts(weights, name),
        )

    def _load_experts(self, weights: Weights, name: str) -> tuple[Expert, ...]:
        config = self.config

        def linears(part: str, num_outputs: int, num_inputs: int) -> list[Linear]:
            matrices = weights.experts(f"{name}.{part}.weight", config.num_experts, num_outputs, num_inputs)
            biases = weights.vector(f"{name}.{part}.bias", config.num_experts, num_outputs)
            return [Linear(matrix, bias) for matrix, bias in zip(matrices, biases, strict=True)]

        gates = linears("ffn_gate_exps", config.intermediate, config.hidden)
        ups = linears("ffn_up_exps", config.intermediate, config.hidden)
        downs = linears("ffn_down_exps", config.hidden, config.intermediate)
        return tuple(Expert(*layers) for layers in zip(gates, ups, downs, strict=True))

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
        logits: NDArray[np.float32] = empty((batch.logit_rows.size, config.vocab_size), np.float32)
        ops.embed(batch.token_ids, self._embedding, out=x)
        rotation = ops.rotation(batch.positions, self._rope)
        for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            ops.norm_linear(x, layer.attention_norm, layer.qkv, out=qkv)
            ops.rope_write(qkv, batch.slots, rotation, None, config.num_heads, out_keys=keys, out_values=values)
            ops.paged_attention(
                qkv,
                config.num_heads,
                keys,
                values,
                batch.positions,
                batch.query_starts,
                batch.block_tables,
                scale=config.head_dim**-0.5,
                window=layer.window,
                sinks=layer.sinks,
                out=attended,
            )
            ops.linear_residual(attended, layer.output, out=x)
            ops.norm_moe_residual(
                x,
                layer.ffn_norm,
                layer.router,
                layer.experts,
                config.num_experts_used,
                SWIGLU_ALPHA,
                SWIGLU_LIMIT,
                out=x,
            )
        ops.norm_head(x, batch.logit_rows, self._norm, self._head, out=logits)
        return logits
