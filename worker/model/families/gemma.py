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
from kernels.devices.protocol import AnyExperts, AnyProjection, AnyRouter, Device
from kernels.weights.parameters import Attention, Geglu, RmsNorm, Rope
from worker.model.config import Architecture, ModelConfig
from worker.model.families.layer_embeddings import LayerEmbedding, LayerEmbeddings
from worker.model.kv_cache import KVCache
from worker.model.layer_config import LayerPattern
from worker.model.rope_scaling import plain_rope
from worker.model.weights import TensorSpec, Weights

HALF_SCALE = 2.0**-4
"""Float16 then holds values up to a million; those below 0.001 it rounds to multiples of a millionth."""


class GemmaArchitecture(Architecture, frozen=True, kw_only=True):
    """What differs between the generations."""

    has_head_norms: bool = True
    """Norms of each head of Q and K."""
    has_value_norms: bool = False
    """Norms of each head of V, without weights. Scores are then not scaled."""
    wide_scale_layers: int = 0
    """A model of so many layers scales scores by 1 / sqrt(hidden / heads), others by 1 / sqrt(head_dim)."""


ARCHITECTURES: Mapping[str, GemmaArchitecture] = {
    "gemma2": GemmaArchitecture(
        keys=frozenset({"attn_logit_softcapping", "final_logit_softcapping"}),
        layers=LayerPattern(full_interval=2, default_window=4096),  # as the first files had no keys for these
        softcaps=(50.0, 30.0),
        has_head_norms=False,
        wide_scale_layers=46,
    ),
    "gemma3": GemmaArchitecture(
        keys=frozenset({"rope.freq_base_swa", "final_logit_softcapping"}),
        layers=LayerPattern(full_interval=6),
        sliding_rope_base=10_000.0,
        wide_scale_layers=62,
    ),
    "gemma4": GemmaArchitecture(
        keys=frozenset(
            {
                *("attention.key_length_swa", "attention.value_length_swa", "attention.sliding_window_pattern"),
                *("rope.freq_base_swa", "rope.dimension_count_swa", "final_logit_softcapping"),
                *("attention.shared_kv_layers", "embedding_length_per_layer_input"),
            }
        ),
        experts="allowed",
        layers=LayerPattern(full_interval=6, differs=True),
        sliding_rope_base=10_000.0,
        has_value_norms=True,
    ),
}


class _Experts(msgspec.Struct, frozen=True, eq=False):
    """A mixture beside the dense block; either's output has a norm of its own before they are added."""

    norm: RmsNorm[AnyArray]
    router: AnyRouter
    experts: AnyExperts
    post_norm: RmsNorm[AnyArray]
    dense_post_norm: RmsNorm[AnyArray]


class _Layer(msgspec.Struct, frozen=True, eq=False):
    attention_norm: RmsNorm[AnyArray]
    qkv: AnyProjection
    attention: Attention[AnyArray]
    output: AnyProjection
    post_attention_norm: RmsNorm[AnyArray]
    ffn_norm: RmsNorm[AnyArray]
    gate_up: AnyProjection
    down: AnyProjection
    post_ffn_norm: RmsNorm[AnyArray]
    experts: _Experts | None
    intermediate: int
    embedding: LayerEmbedding | None
    scale: float


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
        loader = _LayerLoader(config, weights, device, self._layer_embeddings)
        self._layers = [loader.load(index) for index in range(config.num_layers)]
        self._norm = weights.rms_norm("output_norm", config.hidden, config.norm_epsilon)
        self._rope, self._sliding_rope = _load_ropes(config, weights)

    def forward(self, step: Step[AnyArray], cache: KVCache) -> AnyArray:
        """Run one step; returns logits [R, vocab] float32 of ``step.logit_rows``."""
        ops, empty = self._device.ops, self._device.begin_step()
        num_tokens = step.token_ids.size
        x = empty((num_tokens, self._config.hidden), np.float32)
        logits = empty((step.logit_rows.size, self._config.vocab_size), np.float32)

        def arrays(*widths: int) -> dict[int, AnyArray]:
            """One of each width, which all layers of that width write."""
            return {width: empty((num_tokens, width), self._device.activation_dtype) for width in sorted({*widths})}

        qkv = arrays(*(layer.attention.qkv_width for layer in self._layers))
        attended = arrays(*(layer.attention.query_width for layer in self._layers))
        activated = arrays(*(layer.intermediate for layer in self._layers))
        ops.embed(step.token_ids, self._embedding, scale=self._config.hidden**0.5, out=x)
        rotation, sliding_rotation = (
            ops.rotation(step.positions, rope, step.sequence_lengths, step.sequence_rows)
            for rope in (self._rope, self._sliding_rope)
        )
        kinds = {_kind(layer.attention): layer.attention for layer in self._layers}
        plans = {kind: ops.plan_attention(step, kinds[kind]) for kind in sorted(kinds)}
        branches = empty((2 * num_tokens if self._config.num_experts else 0, self._config.hidden), np.float32)
        embeddings = self._layer_embeddings.embed(step.token_ids, x, empty) if self._layer_embeddings else None
        for layer, layer_cache in zip(self._layers, cache.layers, strict=True):
            attention = layer.attention
            by, plan = sliding_rotation if attention.window else rotation, plans[_kind(attention)]
            projected, heads = qkv[attention.qkv_width], attended[attention.query_width]
            gated = activated[layer.intermediate]
            ops.norm_linear(x, layer.attention_norm, layer.qkv, out=projected)
            ops.rope_attention(projected, by, attention, step, plan, out_cache=layer_cache, out=heads)
            ops.linear_norm_residual(heads, layer.output, layer.post_attention_norm, out=x)
            ops.norm_geglu(x, layer.ffn_norm, layer.gate_up, HALF_SCALE, out=gated)
            own = layer.embedding
            scale = 1.0 if own else layer.scale
            if layer.experts:
                self._add_experts(layer, layer.experts, gated, branches, scale, x)
            else:
                ops.linear_norm_residual(gated, layer.down, layer.post_ffn_norm, scale=scale, out=x)
            if self._layer_embeddings and embeddings and own:
                self._layer_embeddings.add(own, embeddings, layer.scale, out=x)
        ops.norm_head(x, step.logit_rows, self._norm, self._head, softcap=self._config.logit_softcap, out=logits)
        return logits

    def _add_experts(
        self, layer: _Layer, experts: _Experts, gated: AnyArray, branches: AnyArray, scale: float, x: AnyArray
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


class _LayerLoader:
    """Asks for the tensors of layers."""

    def __init__(
        self, config: ModelConfig, weights: Weights, device: Device, embeddings: LayerEmbeddings | None
    ) -> None:
        self._config = config
        self._embeddings = embeddings
        self._architecture = ARCHITECTURES[config.architecture]
        self._weights = weights
        self._device = device

    def load(self, index: int) -> _Layer:
        """Those of layer ``index``; raises `ModelLoadFailed`."""
        config, shape, weights = self._config, self._config.layers[index], self._weights.layer(index)
        attention = self._attention(weights, index)
        experts = self._experts(weights) if config.num_experts else None
        return _Layer(
            attention_norm=self._norm(weights, "attn_norm"),
            qkv=self._qkv(weights, attention),
            attention=attention,
            output=weights.projection(
                TensorSpec("attn_output", config.hidden, bias=False), num_inputs=attention.query_width
            ),
            post_attention_norm=self._norm(weights, "post_attention_norm"),
            ffn_norm=self._norm(weights, "ffn_norm"),
            gate_up=weights.gate_up(
                TensorSpec("ffn_gate", shape.intermediate, bias=False),
                TensorSpec("ffn_up", shape.intermediate, bias=False),
                num_inputs=config.hidden,
            ),
            down=weights.projection(TensorSpec("ffn_down", config.hidden, bias=False), num_inputs=shape.intermediate),
            post_ffn_norm=self._norm(weights, "post_ffw_norm", input_scale=1.0 if experts else HALF_SCALE),
            experts=experts,
            intermediate=shape.intermediate,
            embedding=self._embeddings.load(index, weights, config.norm_epsilon) if self._embeddings else None,
            scale=float(weights.host_vector("layer_output_scale.weight", 1)[0])
            if "layer_output_scale.weight" in weights
            else 1.0,
        )

    def _experts(self, weights: Weights) -> _Experts:
        """The router and the experts are given the stream normed without a weight, but for one of their own each."""
        config, store = self._config, self._device.store
        num_experts, hidden = config.num_experts, config.hidden
        scales = weights.host_vector("ffn_gate_inp.scale", hidden) * np.float32(hidden**-0.5)
        return _Experts(
            norm=RmsNorm(store.vector(np.ones(hidden, np.float32)), config.norm_epsilon),
            router=weights.router(
                TensorSpec("ffn_gate_inp", num_experts, bias=False),
                num_inputs=hidden,
                num_used=config.num_experts_used,
                column_scales=scales,
                input_weight=weights.vector("pre_ffw_norm_2.weight", hidden),
                output_scales=weights.vector("ffn_down_exps.scale", num_experts),
            ),
            experts=weights.experts(
                TensorSpec("ffn_gate_up_exps", 2 * config.intermediate, bias=False),
                None,
                TensorSpec("ffn_down_exps", hidden, bias=False),
                num_experts=num_experts,
                num_inputs=hidden,
            ),
            post_norm=self._norm(weights, "post_ffw_norm_2", input_scale=HALF_SCALE),
            dense_post_norm=self._norm(weights, "post_ffw_norm_1", input_scale=HALF_SCALE),
        )

    def _qkv(self, weights: Weights, attention: Attention[AnyArray]) -> AnyProjection:
        queries = TensorSpec("attn_q", attention.query_width, bias=False)
        if attention.shares_cache:
            weights.ignore(r"attn_[kv]\.weight", r"attn_k_norm\.weight")
            return weights.projection(queries, num_inputs=self._config.hidden)
        values = "attn_v" if "attn_v.weight" in weights else "attn_k"
        kv_width = attention.num_kv_heads * attention.head_dim
        keys_and_values = (TensorSpec(name, kv_width, bias=False) for name in ("attn_k", values))
        return weights.projection(queries, *keys_and_values, num_inputs=self._config.hidden)

    def _attention(self, weights: Weights, index: int) -> Attention[AnyArray]:
        config, architecture, shape = self._config, self._architecture, self._config.layers[index]
        head_norms = value_norm = None
        shares_cache = shape.cache_layer != index
        if architecture.has_head_norms:
            query_norm, key_norm = (
                weights.rms_norm(name, shape.head_dim, config.norm_epsilon)
                for name in ("attn_q_norm", "attn_q_norm" if shares_cache else "attn_k_norm")
            )
            head_norms = query_norm, key_norm
        if architecture.has_value_norms:
            ones = self._device.store.vector(np.ones(shape.head_dim, np.float32))
            value_norm = RmsNorm(ones, config.norm_epsilon)
        width = config.hidden / config.num_heads if config.num_layers == architecture.wide_scale_layers else None
        return Attention(
            config.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            scale=1.0 if architecture.has_value_norms else (width or shape.head_dim) ** -0.5,
            window=shape.window,
            head_norms=head_norms,
            value_norm=value_norm,
            softcap=config.attention_softcap,
            shares_cache=shares_cache,
        )

    def _norm(self, weights: Weights, name: str, *, input_scale: float = 1.0) -> RmsNorm[AnyArray]:
        """The norm ``name``, of what is ``input_scale`` times as large as it should be."""
        return weights.rms_norm(name, self._config.hidden, self._config.norm_epsilon * input_scale**2)
