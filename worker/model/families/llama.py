"""Llama, Mistral, Qwen2, Qwen3 and Phi-3: one forward pass, and tensors that differ in names and number.

RMSNorm, RoPE, grouped-query attention, SwiGLU (Touvron et al., 2023). Mistral's files call themselves ``llama``. Phi-3
(Abdin et al., 2024) fuses Q, K and V, and gate and up projection; its long-context variants have longrope: two sets of
rotary frequencies, for sequences within the original context length and for longer ones. A sequence that grows beyond
it is computed anew with the other set (`Llama.recompute_at`), as the Hugging Face implementation has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kernels.batch import AnyArray, Step
from kernels.devices.protocol import AnyProjection, Device
from kernels.weights.parameters import Attention, Pairing, RmsNorm, Rope
from worker.model.config import Architecture, ModelConfig
from worker.model.kv_cache import KVCache
from worker.model.rope_scaling import long_rope, plain_rope
from worker.model.step_activations import StepActivations
from worker.model.weights import TensorSpec, Weights


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    attention_norm: RmsNorm[AnyArray]
    qkv: AnyProjection
    attention: Attention[AnyArray]
    output: AnyProjection
    ffn_norm: RmsNorm[AnyArray]
    gate_up: AnyProjection
    down: AnyProjection


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


ARCHITECTURES: Mapping[str, LlamaArchitecture] = {
    # Llama's converter permutes the rows of Q and K so that a pair's elements are neighbours.
    "llama": LlamaArchitecture(pairing="normal", ignored_tensors=(r"blk\.\d+\.attn_rot_embd\.weight",)),
    "phi3": LlamaArchitecture(
        qkv=("attn_qkv",),
        gate_up=("ffn_up",),
        may_have_biases=False,
        rope_factors=("rope_factors_short", "rope_factors_long"),
    ),
    "qwen2": LlamaArchitecture(needs_qkv_bias=True),
    "qwen3": LlamaArchitecture(head_norms=("attn_q_norm", "attn_k_norm")),
}


class Llama:
    """Architectures ``llama``, ``phi3``, ``qwen2``, ``qwen3``."""

    architectures: ClassVar[Mapping[str, Architecture]] = ARCHITECTURES

    def __init__(self, config: ModelConfig, weights: Weights, device: Device) -> None:
        self._config = config
        self._device = device
        architecture = ARCHITECTURES[config.architecture]
        self._embedding, self._head = weights.head("token_embd.weight", config.vocab_size, config.hidden)
        self._layers = [_load_layer(config, architecture, weights.layer(index)) for index in range(config.num_layers)]
        self._norm = weights.rms_norm("output_norm", config.hidden, config.norm_epsilon)
        rope = _load_rope(config, architecture, weights)
        self.recompute_at = rope.long_after
        self._rope = weights.rope(rope)

    def forward(self, step: Step[AnyArray], cache: KVCache) -> AnyArray:
        """Run one step; returns logits [R, vocab] float32 of ``step.logit_rows``."""
        ops, acts = self._device.ops, StepActivations.allocate(self._config, self._device, step)
        x = acts.residual
        ops.embed(step.token_ids, self._embedding, out=x)
        rotation = ops.rotation(step.positions, self._rope, step.sequence_lengths, step.sequence_rows)
        plan = ops.plan_attention(step, self._layers[0].attention)
        for layer, layer_cache in zip(self._layers, cache.layers, strict=True):
            attention = layer.attention
            ops.norm_linear(x, layer.attention_norm, layer.qkv, out=acts.qkv)
            ops.rope_attention(acts.qkv, rotation, attention, step, plan, out_cache=layer_cache, out=acts.attended)
            ops.linear_residual(acts.attended, layer.output, out=x)
            ops.norm_swiglu(x, layer.ffn_norm, layer.gate_up, out=acts.activated)
            ops.linear_residual(acts.activated, layer.down, out=x)
        ops.norm_head(x, step.logit_rows, self._norm, self._head, out=acts.logits)
        return acts.logits


def _load_layer(config: ModelConfig, architecture: LlamaArchitecture, weights: Weights) -> _Layer:
    def spec(name: str, num_outputs: int, needs_bias: bool = False) -> TensorSpec:
        has_bias = architecture.may_have_biases and f"{name}.bias" in weights
        return TensorSpec(name, num_outputs, bias=needs_bias or has_bias)

    def specs(names: tuple[str, ...], *widths: int, needs_bias: bool = False) -> list[TensorSpec]:
        """Projections of ``widths``, or a fused one of all of them."""
        widths = widths if len(names) > 1 else (sum(widths),)
        return [spec(name, width, needs_bias) for name, width in zip(names, widths, strict=True)]

    def norm(name: str, width: int) -> RmsNorm[AnyArray]:
        return weights.rms_norm(name, width, config.norm_epsilon)

    widths = config.query_width, config.kv_width, config.kv_width
    norms = architecture.head_norms
    return _Layer(
        attention_norm=norm("attn_norm", config.hidden),
        qkv=weights.projection(
            *specs(architecture.qkv, *widths, needs_bias=architecture.needs_qkv_bias), num_inputs=config.hidden
        ),
        attention=Attention(
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            scale=config.head_dim**-0.5,
            window=config.sliding_window,
            head_norms=(norm(norms[0], config.head_dim), norm(norms[1], config.head_dim)) if norms else None,
        ),
        output=weights.projection(spec("attn_output", config.hidden), num_inputs=config.query_width),
        ffn_norm=norm("ffn_norm", config.hidden),
        gate_up=weights.gate_up(
            *specs(architecture.gate_up, config.intermediate, config.intermediate), num_inputs=config.hidden
        ),
        down=weights.projection(spec("ffn_down", config.hidden), num_inputs=config.intermediate),
    )


def _load_rope(config: ModelConfig, architecture: LlamaArchitecture, weights: Weights) -> Rope[NDArray[np.float32]]:
    """The rotary frequencies, in host memory."""
    names = [f"{name}.weight" for name in architecture.rope_factors]
    if names[-1] not in weights:
        return plain_rope(config, architecture.pairing, None, truncate=True)
    factors = [weights.host_vector(name, config.rope.num_dimensions // 2) for name in names]
    if len(factors) > 1:
        return long_rope(config, *factors)
    return plain_rope(config, architecture.pairing, *factors, truncate=True)
