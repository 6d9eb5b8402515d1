"""Qwen3-Next and Qwen3.5: of four layers three are gated delta nets, and one has attention with a gate on its output.

Formulas as in Hugging Face's ``modeling_qwen3_next`` and ``modeling_qwen3_5``. Each layer then has a feed-forward
network or, in the mixtures, experts of which one is shared. Norms are RMS norms; the "+ 1" of their weights is in the
files already. Qwen3.5's rotation in sections is for images: a text has one position in all sections, so that it is a
rotation of the first part of each head.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import ClassVar

import msgspec

from kernels.batch import AnyArray, Step
from kernels.devices.protocol import AnyProjection, Device
from kernels.weights.parameters import DeltaNet, HeadOrder, RmsNorm
from worker.model.config import Architecture, ModelConfig
from worker.model.families.feed_forward import FeedForward, load_feed_forward
from worker.model.families.mixture import Mixture, load_mixture
from worker.model.families.self_attention import SelfAttention, load_attention
from worker.model.forward.logit_tokens import attend, has_few_logits, select_logit_tokens
from worker.model.forward.step_activations import StepActivations
from worker.model.kv_cache import KVCache
from worker.model.layer_config import DELTA_NET_KEYS, LayerConfig
from worker.model.rope_scaling import plain_rope
from worker.model.weights import RowPart, TensorSpec, Weights


class Qwen35Architecture(Architecture, frozen=True, kw_only=True):
    """What differs between the generations."""

    head_order: HeadOrder = "tiled"
    """Which value heads a head of queries and keys serves, as the converter has left them."""
    fused: bool = False
    """Whether beta and alpha are one tensor."""


EXPERT_KEYS = frozenset({"expert_shared_feed_forward_length", "expert_weights_norm"})
ARCHITECTURES: Mapping[str, Qwen35Architecture] = {
    "qwen35": Qwen35Architecture(keys=DELTA_NET_KEYS | {"rope.dimension_sections"}, recurrence="delta_net"),
    "qwen35moe": Qwen35Architecture(
        keys=DELTA_NET_KEYS | EXPERT_KEYS | {"rope.dimension_sections"},
        recurrence="delta_net",
        experts="required",
        has_shared_expert=True,
    ),
    "qwen3next": Qwen35Architecture(
        keys=DELTA_NET_KEYS | EXPERT_KEYS,
        recurrence="delta_net",
        experts="required",
        has_shared_expert=True,
        head_order="grouped",
        fused=True,
    ),
}


class _GatedAttention(msgspec.Struct, frozen=True, eq=False):
    own: SelfAttention
    gate: AnyProjection


class _LinearAttention(msgspec.Struct, frozen=True, eq=False):
    projection: AnyProjection
    net: DeltaNet[AnyArray]
    output: AnyProjection


class _Layer(msgspec.Struct, frozen=True, eq=False):
    norm: RmsNorm[AnyArray]
    mixer: _GatedAttention | _LinearAttention
    ffn_norm: RmsNorm[AnyArray]
    feed_forward: FeedForward | Mixture


class Qwen35:
    """The architectures of `ARCHITECTURES`."""

    architectures: ClassVar[Mapping[str, Architecture]] = ARCHITECTURES
    recompute_at: int | None = None

    def __init__(self, config: ModelConfig, weights: Weights, device: Device) -> None:
        self._config = config
        self._device = device
        self._embedding, self._head = weights.head("token_embd.weight", config.vocab_size, config.hidden)
        self._layers = [_load_layer(config, weights.layer(index), index) for index in range(config.num_layers)]
        self._norm = weights.rms_norm("output_norm", config.hidden, config.norm_epsilon)
        self._rope = weights.rope(plain_rope(config, "neox", None, truncate=True))
        mixers = [layer.mixer for layer in self._layers]
        self._attention = next(mixer.own.attention for mixer in mixers if isinstance(mixer, _GatedAttention))
        nets = [mixer.net for mixer in mixers if isinstance(mixer, _LinearAttention)]
        net_widths = (nets[0].projected_width, nets[0].value_width) if nets else (0, 0)
        self._own_widths = (self._attention.query_width, *net_widths)

    def forward(self, step: Step[AnyArray], cache: KVCache) -> AnyArray:
        """Run one step; returns logits [R, vocab] float32 of ``step.logit_rows``."""
        ops = self._device.ops
        acts = StepActivations.allocate(self._config, self._device, step, self._own_widths)
        x, (gates, projected, mixed) = acts.residual, acts.own
        ops.embed(step.token_ids, self._embedding, out=x)
        rotation = ops.rotation(step.positions, self._rope, step.sequence_lengths, step.sequence_rows)
        plan = ops.plan_attention(step, self._attention)
        caches, states = iter(cache.layers), iter(cache.states)
        for layer in self._layers:
            has_fewer = layer is self._layers[-1] and has_few_logits(step)
            match layer.mixer:
                case _GatedAttention(SelfAttention(qkv, attention, output), gate):
                    ops.norm_linear(x, layer.norm, qkv, out=acts.qkv)
                    own = next(caches)
                    left = attend(ops, acts, rotation, attention, step, plan, has_fewer=has_fewer, out_cache=own)
                    if left is None:
                        break
                    acts, x, (gates, *_) = left, left.residual, left.own
                    ops.norm_linear(x, layer.norm, gate, out=gates)
                    ops.gate(acts.attended, gates, out=acts.attended)
                    ops.linear_residual(acts.attended, output, out=x)
                case _LinearAttention(projection, net, output):
                    ops.norm_linear(x, layer.norm, projection, out=projected)
                    ops.gated_delta_net(projected, net, step, out_state=next(states), out=mixed)
                    if has_fewer:
                        selected = select_logit_tokens(ops, acts, mixed, step)
                        if selected is None:
                            break
                        acts, mixed = selected
                        x = acts.residual
                    ops.linear_residual(mixed, output, out=x)
            match layer.feed_forward:
                case FeedForward(gate_up, down):
                    ops.norm_swiglu(x, layer.ffn_norm, gate_up, out=acts.activated)
                    ops.linear_residual(acts.activated, down, out=x)
                case Mixture(router, experts):
                    ops.norm_moe_residual(x, layer.ffn_norm, router, experts, None, out=x)
        ops.norm_head(x, acts.logit_rows, self._norm, self._head, out=acts.logits)
        return acts.logits


def _load_layer(config: ModelConfig, weights: Weights, index: int) -> _Layer:
    layer = config.layers[index]
    return _Layer(
        norm=weights.rms_norm("attn_norm", config.hidden, config.norm_epsilon),
        mixer=_load_linear_attention(config, weights) if layer.recurrent else _load_attention(config, layer, weights),
        ffn_norm=weights.rms_norm("post_attention_norm", config.hidden, config.norm_epsilon),
        feed_forward=load_mixture(config, weights) if config.num_experts else load_feed_forward(config, weights),
    )


def _load_attention(config: ModelConfig, layer: LayerConfig, weights: Weights) -> _GatedAttention:
    """Rows of ``attn_q`` are, for each head, its query and then its gate."""
    width = layer.head_dim
    own = load_attention(config, layer, weights, RowPart(0, width, 2 * width))
    gate = TensorSpec("attn_q", own.attention.query_width, bias=False, part=RowPart(width, 2 * width, 2 * width))
    return _GatedAttention(own, weights.projection(gate, num_inputs=config.hidden))


def _load_linear_attention(config: ModelConfig, weights: Weights) -> _LinearAttention:
    kept, architecture = config.recurrence, ARCHITECTURES[config.architecture]
    assert kept is not None, "there are recurrent layers"
    net = DeltaNet(
        num_key_heads=kept.num_key_heads,
        num_value_heads=kept.num_value_heads,
        key_dim=kept.key_dim,
        value_dim=kept.value_dim,
        head_order=architecture.head_order,
        taps=weights.taps("ssm_conv1d.weight", kept.channels, kept.num_taps),
        decay=weights.vector("ssm_a", kept.num_value_heads),
        time_bias=weights.vector("ssm_dt.bias", kept.num_value_heads),
        norm=weights.rms_norm("ssm_norm", kept.value_dim, config.norm_epsilon),
    )
    specs = [*_qkvz(net, weights), *_beta_alpha(net, architecture)]
    return _LinearAttention(
        projection=weights.projection(*specs, num_inputs=config.hidden),
        net=net,
        output=weights.projection(TensorSpec("ssm_out", config.hidden, bias=False), num_inputs=net.value_width),
    )


def _qkvz(net: DeltaNet[AnyArray], weights: Weights) -> list[TensorSpec]:
    """Queries, keys, values and z. In the first files of Qwen3-Next rows are, for each key head, its part of these."""
    if "ssm_in.weight" not in weights:
        return [
            TensorSpec("attn_qkv", net.channels, bias=False),
            TensorSpec("attn_gate", net.value_width, bias=False),
        ]
    values = net.value_width // net.num_key_heads
    ends = list(accumulate((net.key_dim, net.key_dim, values, values)))
    return [
        TensorSpec("ssm_in", net.num_key_heads * (end - start), bias=False, part=RowPart(start, end, ends[-1]))
        for start, end in pairwise((0, *ends))
    ]


def _beta_alpha(net: DeltaNet[AnyArray], architecture: Qwen35Architecture) -> list[TensorSpec]:
    """Two numbers for each value head. Where they are one tensor, rows are, for each key head, its part of both."""
    if not architecture.fused:
        return [TensorSpec(name, net.num_value_heads, bias=False) for name in ("ssm_beta", "ssm_alpha")]
    group = net.num_value_heads // net.num_key_heads
    parts = RowPart(0, group, 2 * group), RowPart(group, 2 * group, 2 * group)
    return [TensorSpec("ssm_ba", net.num_value_heads, bias=False, part=part) for part in parts]
