"""Llama, Mistral, Qwen, Phi, Granite, SmolLM and GLM: one forward pass, and tensors that differ in names and number.

RMSNorm, RoPE, grouped-query attention, SwiGLU (Touvron et al., 2023). In Mixtral (Jiang et al., 2024) and in Qwen's
mixtures it is that of each token's best experts. Mistral's and Mixtral's files call themselves ``llama``, the later
Mistrals' ``mistral3``: their queries grow with the position. Phi-3 and Phi-4 (Abdin et al., 2024) fuse Q, K and V, and
gate and up projection; long-context variants have longrope: two sets of rotary frequencies, for sequences within the
original context length and for longer ones. A sequence that grows beyond it is computed anew with the other set
(`Llama.recompute_at`), as the Hugging Face implementation has it. Granite multiplies by numbers of the file, SmolLM3
leaves every fourth layer without rotation, and GLM-4 norms what is added to the residual stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from kernels.batch import AnyArray, Step
from kernels.devices.protocol import AnyMatrix, AnyProjection, AnyRotation, Device
from kernels.weights.parameters import (
    Attention,
    DenseLayer,
    DenseModel,
    OutputHead,
    Pairing,
    QueryGrowth,
    RmsNorm,
    Rope,
    TokenEmbedding,
)
from worker.model.config import Architecture, ModelConfig
from worker.model.families.mixture import Mixture, load_mixture
from worker.model.forward.layer_kinds import layers_to_run
from worker.model.forward.logit_tokens import attend, has_few_logits
from worker.model.forward.one_kernel import OneKernel
from worker.model.forward.step_activations import StepActivations
from worker.model.kv_cache import KVCache
from worker.model.rope_scaling import long_rope, plain_rope
from worker.model.weights import TensorSpec, Weights


class _Output(msgspec.Struct, frozen=True, eq=False):
    """The end of a branch, which is added to the residual stream."""

    projection: AnyProjection
    norm: RmsNorm[AnyArray] | None


class _FeedForward(msgspec.Struct, frozen=True, eq=False):
    gate_up: AnyProjection
    down: _Output


class _Layer(msgspec.Struct, frozen=True, eq=False):
    attention_norm: RmsNorm[AnyArray]
    qkv: AnyProjection
    attention: Attention[AnyArray]
    rotated: bool
    output: _Output
    ffn_norm: RmsNorm[AnyArray]
    feed_forward: _FeedForward | Mixture


class LlamaArchitecture(Architecture, frozen=True, kw_only=True):
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
    unrotated_interval: int = 0
    """How many layers there are to one in which Q and K are not rotated, the last of them; 0: all are rotated."""
    post_norms: tuple[str, str] | None = None
    """Norms of what attention and feed-forward add to the residual stream."""
    rope_factors: tuple[str, ...] = ("rope_freqs",)
    """Tensors that divide the rotary frequencies, where the file has them; two: short and long ones of longrope."""


ARCHITECTURES: Mapping[str, LlamaArchitecture] = {
    "glm4": LlamaArchitecture(
        gate_up=("ffn_up",), pairing="normal", post_norms=("post_attention_norm", "post_ffw_norm")
    ),
    # Granite 4's models without Mamba layers and experts are of this architecture, too, and have keys of the others.
    "granite": LlamaArchitecture(
        pairing="normal",
        keys=frozenset(
            {"attention.scale", "embedding_scale", "residual_scale", "logit_scale", "rope.scaling.finetuned"}
        ),
        idle_keys=frozenset(
            (
                "expert_shared_feed_forward_length",
                *(f"ssm.{name}" for name in ("conv_kernel", "state_size", "group_count", "inner_size")),
                "ssm.time_step_rank",
            )
        ),
    ),
    # Llama's converter permutes the rows of Q and K so that a pair's elements are neighbours.
    "llama": LlamaArchitecture(
        pairing="normal", experts="allowed", ignored_tensors=(r"blk\.\d+\.attn_rot_embd\.weight",)
    ),
    "mistral3": LlamaArchitecture(pairing="normal", keys=frozenset({"attention.temperature_scale"})),
    "phi3": LlamaArchitecture(
        qkv=("attn_qkv",),
        gate_up=("ffn_up",),
        may_have_biases=False,
        rope_factors=("rope_factors_short", "rope_factors_long"),
    ),
    "qwen2": LlamaArchitecture(needs_qkv_bias=True),
    "qwen2moe": LlamaArchitecture(
        needs_qkv_bias=True,
        experts="required",
        has_shared_expert=True,
        renormalises_experts=False,
        keys=frozenset({"expert_shared_feed_forward_length", "expert_weights_norm"}),
    ),
    "qwen3": LlamaArchitecture(head_norms=("attn_q_norm", "attn_k_norm")),
    "qwen3moe": LlamaArchitecture(
        head_norms=("attn_q_norm", "attn_k_norm"), experts="required", keys=frozenset({"expert_weights_norm"})
    ),
    "smollm3": LlamaArchitecture(pairing="normal", unrotated_interval=4),
}


class Llama:
    """The architectures of `ARCHITECTURES`."""

    architectures: ClassVar[Mapping[str, Architecture]] = ARCHITECTURES

    def __init__(self, config: ModelConfig, weights: Weights, device: Device) -> None:
        self._config = config
        self._device = device
        architecture = ARCHITECTURES[config.architecture]
        self._embedding, self._head = weights.head("token_embd.weight", config.vocab_size, config.hidden)
        self._layers = [
            _load_layer(config, architecture, weights.layer(index), index) for index in range(config.num_layers)
        ]
        self._run = layers_to_run(self._layers, device)
        self._norm = weights.rms_norm("output_norm", config.hidden, config.norm_epsilon, divisor=config.scales.logits)
        rope = _load_rope(config, architecture, weights)
        self.recompute_at = rope.long_after
        self._rope = weights.rope(rope)
        self.one_kernel = OneKernel(device, self._dense_model(), self._dense_obstacle())

    def forward(self, step: Step[AnyArray], cache: KVCache) -> AnyArray:
        """Run one step; returns logits [R, vocab] float32 of ``step.logit_rows``."""
        ops, acts = self._device.ops, StepActivations.allocate(self._config, self._device, step)
        if self.one_kernel.runs(step):
            self.one_kernel.forward(step, cache.layers, acts.logits)
        else:
            ops.embed(step.token_ids, self._embedding, scale=self._config.scales.embedding, out=acts.residual)
            rotation = ops.rotation(step.positions, self._rope, step.sequence_lengths, step.sequence_rows)
            acts = self._run_layers(step, cache, rotation, acts)
            ops.norm_head(acts.residual, acts.logit_rows, self._norm, self._head, out=acts.logits)
        return acts.logits

    def _run_layers(
        self, step: Step[AnyArray], cache: KVCache, rotation: AnyRotation, acts: StepActivations
    ) -> StepActivations:
        """All layers; gives the activations of the tokens that went through the last one to its end."""
        ops, x, last = self._device.ops, acts.residual, len(self._layers) - 1
        plan = ops.plan_attention(step, self._layers[0].attention)
        for index in self._run:
            layer, layer_cache = self._layers[index], cache.layers[index]
            attention = layer.attention
            ops.norm_linear(x, layer.attention_norm, layer.qkv, out=acts.qkv)
            by = rotation if layer.rotated else None
            has_fewer = index == last and has_few_logits(step)
            left = attend(ops, acts, by, attention, step, plan, has_fewer=has_fewer, out_cache=layer_cache)
            if left is None:
                break
            acts, x = left, left.residual
            self._add(acts.attended, layer.output, out=x)
            match layer.feed_forward:
                case _FeedForward(gate_up, down):
                    ops.norm_swiglu(x, layer.ffn_norm, gate_up, out=acts.activated)
                    self._add(acts.activated, down, out=x)
                case Mixture(router, experts):
                    ops.norm_moe_residual(x, layer.ffn_norm, router, experts, None, out=x)
        return acts

    def _dense_obstacle(self) -> str | None:
        """What the layers do that is not in a `DenseLayer`; None: nothing."""
        if self._config.scales.residual != 1.0:
            return "it does not scale what is added to the residual stream"
        if ARCHITECTURES[self._config.architecture].post_norms:
            return "it does not norm what is added to the residual stream"
        if not all(layer.rotated for layer in self._layers):
            return "it is for layers that are all rotated"
        if any(isinstance(layer.feed_forward, Mixture) for layer in self._layers):
            return "it is for layers without experts"
        return None

    def _dense_model(self) -> DenseModel[AnyArray, AnyMatrix, AnyProjection]:
        """What `decode_layers` takes, with the layers that have no experts."""
        layers = [
            _dense_layer(layer, layer.feed_forward)
            for layer in self._layers
            if isinstance(layer.feed_forward, _FeedForward)
        ]
        embedding = TokenEmbedding(self._embedding, self._config.scales.embedding)
        return DenseModel(embedding, self._rope, layers, OutputHead(self._norm, self._head))

    def _add(self, x: AnyArray, output: _Output, *, out: AnyArray) -> None:
        if output.norm is None:
            self._device.ops.linear_residual(x, output.projection, scale=self._config.scales.residual, out=out)
        else:
            self._device.ops.linear_norm_residual(x, output.projection, output.norm, out=out)


def _dense_layer(layer: _Layer, feed_forward: _FeedForward) -> DenseLayer[AnyArray, AnyProjection]:
    return DenseLayer(
        attention_norm=layer.attention_norm,
        qkv=layer.qkv,
        attention=layer.attention,
        output=layer.output.projection,
        ffn_norm=layer.ffn_norm,
        gate_up=feed_forward.gate_up,
        down=feed_forward.down.projection,
    )


def _load_layer(config: ModelConfig, architecture: LlamaArchitecture, weights: Weights, index: int) -> _Layer:
    def spec(name: str, num_outputs: int, needs_bias: bool = False) -> TensorSpec:
        has_bias = architecture.may_have_biases and f"{name}.bias" in weights
        return TensorSpec(name, num_outputs, bias=needs_bias or has_bias)

    def specs(names: tuple[str, ...], *widths: int, needs_bias: bool = False) -> list[TensorSpec]:
        """Projections of ``widths``, or a fused one of all of them."""
        widths = widths if len(names) > 1 else (sum(widths),)
        return [spec(name, width, needs_bias) for name, width in zip(names, widths, strict=True)]

    def norm(name: str, width: int) -> RmsNorm[AnyArray]:
        return weights.rms_norm(name, width, config.norm_epsilon)

    def output(name: str, num_inputs: int, branch: int) -> _Output:
        post_norms = architecture.post_norms
        return _Output(
            weights.projection(spec(name, config.hidden), num_inputs=num_inputs),
            norm(post_norms[branch], config.hidden) if post_norms else None,
        )

    def feed_forward() -> _FeedForward | Mixture:
        if config.num_experts:
            return load_mixture(config, weights)
        both = specs(architecture.gate_up, config.intermediate, config.intermediate)
        gate_up = weights.gate_up(*both, num_inputs=config.hidden)
        return _FeedForward(gate_up, output("ffn_down", config.intermediate, 1))

    widths = config.query_width, config.kv_width, config.kv_width
    norms, interval, scale = architecture.head_norms, architecture.unrotated_interval, config.scales.attention
    return _Layer(
        attention_norm=norm("attn_norm", config.hidden),
        qkv=weights.projection(
            *specs(architecture.qkv, *widths, needs_bias=architecture.needs_qkv_bias), num_inputs=config.hidden
        ),
        attention=Attention(
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            scale=config.head_dim**-0.5 if scale is None else scale,
            window=config.sliding_window,
            head_norms=(norm(norms[0], config.head_dim), norm(norms[1], config.head_dim)) if norms else None,
        ),
        rotated=config.rotates and (not interval or (index + 1) % interval > 0),
        output=output("attn_output", config.query_width, 0),
        ffn_norm=norm("ffn_norm", config.hidden),
        feed_forward=feed_forward(),
    )


def _load_rope(config: ModelConfig, architecture: LlamaArchitecture, weights: Weights) -> Rope[NDArray[np.float32]]:
    """The rotary frequencies, in host memory."""
    names = [f"{name}.weight" for name in architecture.rope_factors]
    if names[-1] not in weights:
        rope = plain_rope(config, architecture.pairing, None, truncate=True)
        rate = config.scales.temperature
        return replace(rope, query_growth=QueryGrowth(rate, config.rope.original_context_length)) if rate else rope
    factors = [weights.rope_factors(name, config.rope.num_dimensions // 2) for name in names]
    if len(factors) > 1:
        return long_rope(config, *factors)
    return plain_rope(config, architecture.pairing, *factors, truncate=True)
