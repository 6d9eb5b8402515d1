"""Gemma 2, 3 and 4: norms before and after each block, GeGLU, windows on most layers (Google, 2024-2026).

The embedding is scaled by sqrt(hidden) and is also the output head. Gemma 2 has soft caps on scores and logits, Gemma 3
norms of heads and two rotations; Gemma 4 also has norms of values, longer heads in layers without a window, values made
of keys there, and a scale of each layer's output. Formulas as in Hugging Face's ``modeling_gemma2`` to ``_gemma4``.

In real models the residual stream and what is added to it before its norm exceed what float16 can hold: both are
float32 on every device. What a GPU keeps in float16 without a norm before it is the output of GeGLU and, where layers
have embeddings of their own, the residual stream that gates those. Both are scaled by `HALF_SCALE`, which the norm
after the next product, or the next op, takes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec
import numpy as np
from msgspec.structs import replace

from kernels.batch import AnyArray, Step, behind, first
from kernels.devices.protocol import Allocate, AnyAttentionPlan, AnyRotation, Device
from kernels.weights.parameters import Attention, Geglu, Rope
from worker.model.config import Architecture, ModelConfig
from worker.model.families.gemma_layers import ARCHITECTURES, HALF_SCALE, GemmaExperts, GemmaLayer, LayerLoader
from worker.model.families.layer_embeddings import LayerEmbeddings, StepEmbeddings
from worker.model.forward.logit_tokens import has_few_logits
from worker.model.kv_cache import KVCache
from worker.model.rope_scaling import plain_rope
from worker.model.weights import Weights


class _Arrays(msgspec.Struct, frozen=True, eq=False):
    """Arrays of T tokens, of each width one, which all layers of that width write."""

    qkv: Mapping[int, AnyArray]  # [T, width] each
    attended: Mapping[int, AnyArray]
    activated: Mapping[int, AnyArray]
    branches: AnyArray  # [2 T, hidden] float32 in a mixture of experts, else without elements

    def first(self, count: int) -> _Arrays:
        """Those of the first ``count`` tokens."""

        def of(arrays: Mapping[int, AnyArray]) -> dict[int, AnyArray]:
            return {width: first(array, count) for width, array in arrays.items()}

        branches = first(self.branches, 2 * count) if self.branches.size else self.branches
        return _Arrays(of(self.qkv), of(self.attended), of(self.activated), branches)


class _Tokens(msgspec.Struct, frozen=True, eq=False):
    """The tokens of a step as layers take them."""

    step: Step[AnyArray]
    rotation: AnyRotation
    sliding_rotation: AnyRotation  # of layers with a window
    plans: Mapping[tuple[int, int, int], AnyAttentionPlan]  # by `_kind`
    arrays: _Arrays


class Gemma:
    """Architectures ``gemma2``, ``gemma3``, ``gemma4``."""

    architectures: ClassVar[Mapping[str, Architecture]] = ARCHITECTURES
    recompute_at: int | None = None

    def __init__(self, config: ModelConfig, weights: Weights, device: Device) -> None:
        self._config = config
        self._device = device
        self._embedding, self._head = weights.head("token_embd.weight", config.vocab_size, config.hidden)
        self._layer_embeddings = None
        if config.layer_embedding:
            self._layer_embeddings = LayerEmbeddings(config, weights, device, HALF_SCALE)
        loader = LayerLoader(config, weights, device, self._layer_embeddings)
        self._layers = [loader.load(index) for index in range(config.num_layers)]
        # What comes after its keys and values is for logits alone, and so are all layers that share caches behind it.
        self._last_writer = [layer for layer in self._layers if not layer.attention.shares_cache][-1]
        self._norm = weights.rms_norm("output_norm", config.hidden, config.norm_epsilon)
        self._rope, self._sliding_rope = _load_ropes(config, weights)

    def forward(self, step: Step[AnyArray], cache: KVCache) -> AnyArray:
        """Run one step; returns logits [R, vocab] float32 of ``step.logit_rows``."""
        ops, empty = self._device.ops, self._device.begin_step()
        rows, has_fewer = step.logit_rows, has_few_logits(step)
        x = empty((step.token_ids.size, self._config.hidden), np.float32)
        logits = empty((rows.size, self._config.vocab_size), np.float32)
        ops.embed(step.token_ids, self._embedding, scale=self._config.hidden**0.5, out=x)
        tokens = self._prepare(step, self._allocate(step.token_ids.size, empty))
        embeddings = self._layer_embeddings.embed(step.token_ids, x, empty) if self._layer_embeddings else None
        for layer, layer_cache in zip(self._layers, cache.layers, strict=True):
            attention, arrays = layer.attention, tokens.arrays
            by = tokens.sliding_rotation if attention.window else tokens.rotation
            plan = tokens.plans[_kind(attention)]
            projected, heads = arrays.qkv[attention.qkv_width], arrays.attended[attention.query_width]
            ops.norm_linear(x, layer.attention_norm, layer.qkv, out=projected)
            if has_fewer and layer is self._last_writer:
                ops.rope_write(projected, step.slots, by, attention, out_cache=layer_cache)
                if not rows.size:
                    break
                selected = ops.select_step(step)
                projected = ops.select_rows(projected, rows, attention.query_width)
                x = ops.select_rows(x, rows, self._config.hidden)
                embeddings = embeddings.select(ops, rows) if embeddings else None
                tokens = self._prepare(selected, arrays.first(rows.size))
                plan, heads = tokens.plans[_kind(attention)], tokens.arrays.attended[attention.query_width]
                ops.paged_attention(projected, layer_cache, attention, selected, plan, out=heads)
            else:
                ops.rope_attention(projected, by, attention, tokens.step, plan, out_cache=layer_cache, out=heads)
            ops.linear_norm_residual(heads, layer.output, layer.post_attention_norm, out=x)
            self._feed_forward(layer, tokens.arrays, embeddings, x)
        softcap = self._config.logit_softcap
        ops.norm_head(x, tokens.step.logit_rows, self._norm, self._head, softcap=softcap, out=logits)
        return logits

    def _allocate(self, num_tokens: int, empty: Allocate[AnyArray]) -> _Arrays:
        def arrays(*widths: int) -> dict[int, AnyArray]:
            return {width: empty((num_tokens, width), self._device.activation_dtype) for width in sorted({*widths})}

        return _Arrays(
            qkv=arrays(*(layer.attention.qkv_width for layer in self._layers)),
            attended=arrays(*(layer.attention.query_width for layer in self._layers)),
            activated=arrays(*(layer.intermediate for layer in self._layers)),
            branches=empty((2 * num_tokens if self._config.num_experts else 0, self._config.hidden), np.float32),
        )

    def _prepare(self, step: Step[AnyArray], arrays: _Arrays) -> _Tokens:
        ops = self._device.ops
        rotation, sliding_rotation = (
            ops.rotation(step.positions, rope, step.sequence_lengths, step.sequence_rows)
            for rope in (self._rope, self._sliding_rope)
        )
        kinds = {_kind(layer.attention): layer.attention for layer in self._layers}
        plans = {kind: ops.plan_attention(step, kinds[kind]) for kind in sorted(kinds)}
        return _Tokens(step, rotation, sliding_rotation, plans, arrays)

    def _feed_forward(self, layer: GemmaLayer, arrays: _Arrays, embeddings: StepEmbeddings | None, x: AnyArray) -> None:
        """What comes after the attention of ``layer``, to the residual stream ``x``."""
        ops, gated, own = self._device.ops, arrays.activated[layer.intermediate], layer.embedding
        ops.norm_geglu(x, layer.ffn_norm, layer.gate_up, HALF_SCALE, out=gated)
        scale = 1.0 if own else layer.scale
        if layer.experts:
            self._add_experts(layer, layer.experts, gated, arrays.branches, scale, x)
        else:
            ops.linear_norm_residual(gated, layer.down, layer.post_ffn_norm, scale=scale, out=x)
        if self._layer_embeddings and embeddings and own:
            self._layer_embeddings.add(own, embeddings, layer.scale, out=x)

    def _add_experts(
        self, layer: GemmaLayer, experts: GemmaExperts, gated: AnyArray, branches: AnyArray, scale: float, x: AnyArray
    ) -> None:
        """Add the dense block, of which ``gated`` is known, and the mixture beside it to the residual stream ``x``."""
        ops, num_tokens = self._device.ops, x.shape[0]
        dense, mixture = first(branches, num_tokens), behind(branches, num_tokens)
        norms, gating = (experts.dense_post_norm, experts.post_norm), Geglu(HALF_SCALE)
        ops.linear(gated, layer.down, out=dense)
        ops.norm_moe_residual(x, experts.norm, experts.router, experts.experts, gating, adds=False, out=mixture)
        ops.norm_branches(dense, norms[0], mixture, norms[1], layer.post_ffn_norm, scale=scale, out=x)


def _kind(attention: Attention[AnyArray]) -> tuple[int, int, int]:
    """Layers of one kind share a plan of their attention."""
    return attention.window, attention.num_kv_heads, attention.head_dim


def _load_ropes(config: ModelConfig, weights: Weights) -> tuple[Rope[AnyArray], Rope[AnyArray]]:
    """The rotations of layers without and with a window."""
    factors = None
    if "rope_freqs.weight" in weights:
        factors = weights.rope_factors("rope_freqs.weight", config.rope.num_dimensions // 2)
    sliding = replace(config, rope=config.sliding_rope)
    return (
        weights.rope(plain_rope(config, "neox", factors, truncate=True)),
        weights.rope(plain_rope(sliding, "neox", None, truncate=True)),
    )
