"""Llama, Mistral, Qwen2, Qwen3 and Phi-3: one forward pass, and tensors that differ in names and number.

RMSNorm, RoPE, grouped-query attention, SwiGLU (Touvron et al., 2023). Mistral's files call themselves ``llama``. Phi-3
(Abdin et al., 2024) fuses Q, K and V, and gate and up projection; its long-context variants have longrope: two sets of
rotary frequencies, for sequences within the original context length and for longer ones. A sequence that grows beyond
it is computed anew with the other set (`Llama.recompute_at`), as the Hugging Face implementation has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from kernels.batch import Step
from kernels.devices.protocol import Device
from kernels.weights.parameters import Attention, Pairing, RmsNorm, Rope
from worker.model.config import Architecture, ModelConfig
from worker.model.kv_cache import KVCache, allocate_cache, bytes_per_block
from worker.model.rope_scaling import long_rope, plain_rope
from worker.model.weights import Part, Weights


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    attention_norm: RmsNorm
    qkv: Any
    attention: Attention
    output: Any
    ffn_norm: RmsNorm
    gate_up: Any
    down: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaArchitecture(Architecture):
    """What an architecture of the family has in its layers. Tensor names are without layer and ``.weight``."""

    qkv: tuple[str, ...] = ("attn_q", "attn_k", "attn_v")
    """Projections of attention; one name: a fused tensor."""
    gate_up: tuple[str, ...] = ("ffn_gate", "ffn_up")
    """Gate and up projection; one name: a fused tensor, gate first."""
    head_norms: tuple[str, str] | None = None
    """Norms of each head of Q and K."""
    needs_qkv_bias: bool = False
    """Whether Q, K and V must have biases."""
    may_have_biases: bool = True
    """Whether a projection has a bias if the file holds one (Llama's ``attention_bias`` and ``mlp_bias``)."""
    pairing: Pairing = "neox"
    """Which elements of a head are rotated together."""
    rope_factors: tuple[str, ...] = ("rope_freqs",)
    """Tensors that divide the rotary frequencies, where the file has them; two: short and long ones of longrope."""


class Llama:
    """Architectures ``llama``, ``phi3``, ``qwen2``, ``qwen3``."""

    architectures: ClassVar[Mapping[str, LlamaArchitecture]] = {
        # Llama's converter permutes the rows of Q and K so that a pair's elements are neighbours.
        "llama": LlamaArchitecture(pairing="normal"),
        "phi3": LlamaArchitecture(
            qkv=("attn_qkv",),
            gate_up=("ffn_up",),
            may_have_biases=False,
            rope_factors=("rope_factors_short", "rope_factors_long"),
        ),
        "qwen2": LlamaArchitecture(needs_qkv_bias=True),
        "qwen3": LlamaArchitecture(head_norms=("attn_q_norm", "attn_k_norm")),
    }

    def __init__(self, config: ModelConfig, weights: Weights, device: Device) -> None:
        self.config = config
        self.device = device
        architecture = self.architectures[config.architecture]
        self._embedding, self._head = weights.head("token_embd.weight", config.vocab_size, config.hidden)
        self._layers = [
            _load_layer(config, architecture, weights, f"blk.{index}") for index in range(config.num_layers)
        ]
        self._norm = RmsNorm(weights.vector("output_norm.weight", config.hidden), config.norm_epsilon)
        rope = _load_rope(config, architecture, weights)
        self.recompute_at = rope.long_after
        self._rope = weights.rope(rope)

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
        ops.embed(step.token_ids, self._embedding, out=x)
        rotation = ops.rotation(step.positions, self._rope, step.sequence_lengths, step.sequence_rows)
        plan = ops.plan_attention(step, self._layers[0].attention)
        for layer, layer_cache in zip(self._layers, cache.layers, strict=True):
            ops.norm_linear(x, layer.attention_norm, layer.qkv, out=qkv)
            ops.rope_attention(qkv, rotation, layer.attention, step, plan, out_cache=layer_cache, out=attended)
            ops.linear_residual(attended, layer.output, out=x)
            ops.norm_swiglu(x, layer.ffn_norm, layer.gate_up, out=activated)
            ops.linear_residual(activated, layer.down, out=x)
        ops.norm_head(x, step.logit_rows, self._norm, self._head, out=logits)
        return logits


def _load_layer(config: ModelConfig, architecture: LlamaArchitecture, weights: Weights, name: str) -> _Layer:
    query_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def part(part: str, num_outputs: int, needs_bias: bool = False) -> Part:
        has_bias = architecture.may_have_biases and f"{name}.{part}.bias" in weights
        return Part(f"{name}.{part}", num_outputs, bias=needs_bias or has_bias)

    def parts(names: tuple[str, ...], *widths: int, needs_bias: bool = False) -> list[Part]:
        """Projections of ``widths``, or a fused one of all of them."""
        widths = widths if len(names) > 1 else (sum(widths),)
        return [part(name, width, needs_bias) for name, width in zip(names, widths, strict=True)]

    def norm(part: str, width: int) -> RmsNorm:
        return RmsNorm(weights.vector(f"{name}.{part}.weight", width), config.norm_epsilon)

    qkv = parts(architecture.qkv, query_width, kv_width, kv_width, needs_bias=architecture.needs_qkv_bias)
    norms = architecture.head_norms
    return _Layer(
        attention_norm=norm("attn_norm", config.hidden),
        qkv=weights.projection(*qkv, num_inputs=config.hidden),
        attention=Attention(
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            scale=config.head_dim**-0.5,
            window=config.sliding_window,
            head_norms=(norm(norms[0], config.head_dim), norm(norms[1], config.head_dim)) if norms else None,
        ),
        output=weights.projection(part("attn_output", config.hidden), num_inputs=query_width),
        ffn_norm=norm("ffn_norm", config.hidden),
        gate_up=weights.gate_up(
            *parts(architecture.gate_up, config.intermediate, config.intermediate), num_inputs=config.hidden
        ),
        down=weights.projection(part("ffn_down", config.hidden), num_inputs=config.intermediate),
    )


def _load_rope(config: ModelConfig, architecture: LlamaArchitecture, weights: Weights) -> Rope:
    """The rotary frequencies, in host memory."""
    names = [f"{name}.weight" for name in architecture.rope_factors]
    if names[-1] not in weights:
        return plain_rope(config, architecture.pairing, None, truncate=True)
    factors = [weights.host_vector(name, config.rope.num_dimensions // 2) for name in names]
    if len(factors) > 1:
        return long_rope(config, *factors)
    return plain_rope(config, architecture.pairing, *factors, truncate=True)
