"""What layers of Gemma are made of, and where their weights are in files; see `worker.model.families.gemma`."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from kernels.batch import AnyArray
from kernels.devices.protocol import AnyExperts, AnyProjection, AnyRouter, Device
from kernels.weights.parameters import Attention, RmsNorm
from worker.model.config import Architecture, ModelConfig
from worker.model.families.layer_embeddings import LayerEmbedding, LayerEmbeddings
from worker.model.layer_config import LayerPattern
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


class GemmaExperts(msgspec.Struct, frozen=True, eq=False):
    """A mixture beside the dense block; either's output has a norm of its own before they are added."""

    norm: RmsNorm[AnyArray]
    router: AnyRouter
    experts: AnyExperts
    post_norm: RmsNorm[AnyArray]
    dense_post_norm: RmsNorm[AnyArray]


class GemmaLayer(msgspec.Struct, frozen=True, eq=False):
    """The weights of a layer, and what its attention is."""

    attention_norm: RmsNorm[AnyArray]
    qkv: AnyProjection
    attention: Attention[AnyArray]
    output: AnyProjection
    post_attention_norm: RmsNorm[AnyArray]
    ffn_norm: RmsNorm[AnyArray]
    gate_up: AnyProjection
    down: AnyProjection
    post_ffn_norm: RmsNorm[AnyArray]
    experts: GemmaExperts | None
    intermediate: int
    embedding: LayerEmbedding | None
    scale: float


class LayerLoader:
    """Asks for the tensors of layers."""

    def __init__(
        self, config: ModelConfig, weights: Weights, device: Device, embeddings: LayerEmbeddings | None
    ) -> None:
        self._config = config
        self._embeddings = embeddings
        self._architecture = ARCHITECTURES[config.architecture]
        self._weights = weights
        self._device = device

    def load(self, index: int) -> GemmaLayer:
        """Those of layer ``index``; raises `ModelLoadFailed`."""
        config, shape, weights = self._config, self._config.layers[index], self._weights.layer(index)
        attention = self._attention(weights, index)
        experts = self._experts(weights) if config.num_experts else None
        return GemmaLayer(
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

    def _experts(self, weights: Weights) -> GemmaExperts:
        """The router and the experts are given the stream normed without a weight, but for one of their own each."""
        config, store = self._config, self._device.store
        num_experts, hidden = config.num_experts, config.hidden
        scales = weights.host_vector("ffn_gate_inp.scale", hidden) * np.float32(hidden**-0.5)
        return GemmaExperts(
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
