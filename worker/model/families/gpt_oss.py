"""gpt-oss: mixture of experts, attention sinks, a sliding window on every other layer, YaRN (OpenAI, 2025).

RMSNorm, grouped-query attention with biases everywhere, top-k of the experts with a clamped SwiGLU. Formulas as in
``gpt_oss/torch/model.py`` and Hugging Face's ``modeling_gpt_oss``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from kernels.batch import Step
from kernels.devices.protocol import Device
from kernels.weights.parameters import Attention, RmsNorm, Router
from worker.model.config import Architecture, ModelConfig
from worker.model.kv_cache import KVCache, allocate_cache, bytes_per_block
from worker.model.rope_scaling import plain_rope
from worker.model.weights import Part, Weights

# Constants of the architecture: the file has no keys for them.
SWIGLU_ALPHA = 1.702
SWIGLU_LIMIT = 7.0


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    attention_norm: RmsNorm
    qkv: Any
    attention: Attention
    output: Any
    ffn_norm: RmsNorm
    router: Router
    experts: Any


class GptOss:
    """Architecture ``gpt-oss``."""

    architectures: ClassVar[Mapping[str, Architecture]] = {"gpt-oss": Architecture(has_experts=True)}
    recompute_at: int | None = None

    def __init__(self, config: ModelConfig, weights: Weights, device: Device) -> None:
        self.config = config
        self.device = device
        self._embedding, self._head = weights.head("token_embd.weight", config.vocab_size, config.hidden)
        self._layers = [self._load_layer(weights, index) for index in range(config.num_layers)]
        self._norm = RmsNorm(weights.vector("output_norm.weight", config.hidden), config.norm_epsilon)
        # The published configuration says truncate=false; GGUF has no key for it.
        self._rope = weights.rope(plain_rope(config, "neox", None, truncate=False))

    def _load_layer(self, weights: Weights, index: int) -> _Layer:
        config, name = self.config, f"blk.{index}"
        query_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

        def part(part: str, num_outputs: int) -> Part:
            return Part(f"{name}.{part}", num_outputs, bias=True)

        def norm(part: str) -> RmsNorm:
            return RmsNorm(weights.vector(f"{name}.{part}.weight", config.hidden), config.norm_epsilon)

        return _Layer(
            attention_norm=norm("attn_norm"),
            qkv=weights.projection(
                part("attn_q", query_width),
                part("attn_k", kv_width),
                part("attn_v", kv_width),
                num_inputs=config.hidden,
            ),
            attention=Attention(
                config.num_heads,
                config.num_kv_heads,
                config.head_dim,
                scale=config.head_dim**-0.5,
                window=0 if index % 2 else config.sliding_window,
                sinks=weights.vector(f"{name}.attn_sinks.weight", config.num_heads),
            ),
            output=weights.projection(part("attn_output", config.hidden), num_inputs=query_width),
            ffn_norm=norm("post_attention_norm"),
            router=weights.router(
                part("ffn_gate_inp", config.num_experts), num_inputs=config.hidden, num_used=config.num_experts_used
            ),
            experts=weights.experts(
                part("ffn_gate_exps", config.intermediate),
                part("ffn_up_exps", config.intermediate),
                part("ffn_down_exps", config.hidden),
                num_experts=config.num_experts,
                num_inputs=config.hidden,
            ),
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
        logits = empty((step.logit_rows.size, config.vocab_size), np.float32)
        ops.embed(step.token_ids, self._embedding, out=x)
        rotation = ops.rotation(step.positions, self._rope, step.sequence_lengths, step.sequence_rows)
        by_window = {layer.attention.window: layer.attention for layer in self._layers}
        plans = {window: ops.plan_attention(step, by_window[window]) for window in sorted(by_window)}
        for layer, layer_cache in zip(self._layers, cache.layers, strict=True):
            ops.norm_linear(x, layer.attention_norm, layer.qkv, out=qkv)
            plan = plans[layer.attention.window]
            ops.rope_attention(qkv, rotation, layer.attention, step, plan, out_cache=layer_cache, out=attended)
            ops.linear_residual(attended, layer.output, out=x)
            ops.norm_moe_residual(
                x,
                layer.ffn_norm,
                layer.router,
                layer.experts,
                SWIGLU_ALPHA,
                SWIGLU_LIMIT,
                out=x,
            )
        ops.norm_head(x, step.logit_rows, self._norm, self._head, out=logits)
        return logits
