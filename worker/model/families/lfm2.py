"""LFM2 and LFM2.5 (Liquid AI, 2025): most layers are short convolutions, the others have attention.

A convolution looks at the last few tokens only, and is gated before and after. Norms are RMS norms, feed-forward
networks have SwiGLUs, the embedding is also the output head. Formulas as in Hugging Face's ``modeling_lfm2``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec

from kernels.batch import AnyArray, Step
from kernels.devices.protocol import AnyProjection, Device
from kernels.weights.parameters import RmsNorm
from worker.model.config import Architecture, ModelConfig
from worker.model.families.feed_forward import FeedForward, load_feed_forward
from worker.model.families.self_attention import SelfAttention, load_attention
from worker.model.forward.logit_tokens import attend, has_few_logits, select_logit_tokens
from worker.model.forward.step_activations import StepActivations
from worker.model.kv_cache import KVCache
from worker.model.layer_config import SHORT_CONVOLUTION_KEYS
from worker.model.rope_scaling import plain_rope
from worker.model.weights import TensorSpec, Weights


class _ShortConvolution(msgspec.Struct, frozen=True, eq=False):
    projection: AnyProjection
    taps: AnyArray  # [taps, hidden]
    output: AnyProjection


class _Layer(msgspec.Struct, frozen=True, eq=False):
    norm: RmsNorm[AnyArray]
    mixer: SelfAttention | _ShortConvolution
    ffn_norm: RmsNorm[AnyArray]
    feed_forward: FeedForward


class Lfm2:
    """Architecture ``lfm2``."""

    architectures: ClassVar[Mapping[str, Architecture]] = {
        "lfm2": Architecture(keys=SHORT_CONVOLUTION_KEYS, recurrence="short_convolution")
    }
    recompute_at: int | None = None

    def __init__(self, config: ModelConfig, weights: Weights, device: Device) -> None:
        self._config = config
        self._device = device
        self._embedding, self._head = weights.head("token_embd.weight", config.vocab_size, config.hidden)
        self._layers = [_load_layer(config, weights.layer(index), index) for index in range(config.num_layers)]
        # The last norm has the name of one on embeddings, which there is none of.
        self._norm = weights.rms_norm("token_embd_norm", config.hidden, config.norm_epsilon)
        self._rope = weights.rope(plain_rope(config, "neox", None, truncate=True))
        mixers = [layer.mixer for layer in self._layers]
        self._attention = next(mixer.attention for mixer in mixers if isinstance(mixer, SelfAttention))

    def forward(self, step: Step[AnyArray], cache: KVCache) -> AnyArray:
        """Run one step; returns logits [R, vocab] float32 of ``step.logit_rows``."""
        ops, hidden = self._device.ops, self._config.hidden
        acts = StepActivations.allocate(self._config, self._device, step, (3 * hidden, hidden))
        x, (projected, mixed) = acts.residual, acts.own
        ops.embed(step.token_ids, self._embedding, out=x)
        rotation = ops.rotation(step.positions, self._rope, step.sequence_lengths, step.sequence_rows)
        plan = ops.plan_attention(step, self._attention)
        caches, states = iter(cache.layers), iter(cache.states)
        for layer in self._layers:
            has_fewer = layer is self._layers[-1] and has_few_logits(step)
            match layer.mixer:
                case SelfAttention(qkv, attention, output):
                    ops.norm_linear(x, layer.norm, qkv, out=acts.qkv)
                    own = next(caches)
                    left = attend(ops, acts, rotation, attention, step, plan, has_fewer=has_fewer, out_cache=own)
                    if left is None:
                        break
                    acts, x = left, left.residual
                    ops.linear_residual(acts.attended, output, out=x)
                case _ShortConvolution(projection, taps, output):
                    ops.norm_linear(x, layer.norm, projection, out=projected)
                    ops.short_convolution(projected, taps, step, out_state=next(states), out=mixed)
                    if has_fewer:
                        selected = select_logit_tokens(ops, acts, mixed, step)
                        if selected is None:
                            break
                        acts, mixed = selected
                        x = acts.residual
                    ops.linear_residual(mixed, output, out=x)
            ops.norm_swiglu(x, layer.ffn_norm, layer.feed_forward.gate_up, out=acts.activated)
            ops.linear_residual(acts.activated, layer.feed_forward.down, out=x)
        ops.norm_head(x, acts.logit_rows, self._norm, self._head, out=acts.logits)
        return acts.logits


def _load_layer(config: ModelConfig, weights: Weights, index: int) -> _Layer:
    layer = config.layers[index]
    return _Layer(
        norm=weights.rms_norm("attn_norm", config.hidden, config.norm_epsilon),
        mixer=_load_convolution(config, weights) if layer.recurrent else load_attention(config, layer, weights),
        ffn_norm=weights.rms_norm("ffn_norm", config.hidden, config.norm_epsilon),
        feed_forward=load_feed_forward(config, weights),
    )


def _load_convolution(config: ModelConfig, weights: Weights) -> _ShortConvolution:
    """What is projected are a gate before the convolution, one after it, and what goes through it."""
    assert config.recurrence is not None, "there are recurrent layers"
    hidden, num_taps = config.hidden, config.recurrence.num_taps
    projection = TensorSpec("shortconv.in_proj", 3 * hidden, bias=False)
    output = TensorSpec("shortconv.out_proj", hidden, bias=False)
    return _ShortConvolution(
        projection=weights.projection(projection, num_inputs=hidden),
        taps=weights.taps("shortconv.conv.weight", hidden, num_taps),
        output=weights.projection(output, num_inputs=hidden),
    )
