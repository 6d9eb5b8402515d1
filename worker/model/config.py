"""The shape of a model, from a GGUF's metadata: every key checked, and frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec

from orcd.errors import ModelLoadFailed
from worker.model.gguf import GGUFFile
from worker.model.layer_config import (
    EQUAL_LAYERS,
    LayerConfig,
    LayerLimits,
    LayerPattern,
    Recurrence,
    RecurrentKind,
    read_layers,
    read_recurrence,
    recurrent_layers,
)
from worker.model.metadata_keys import MetadataKeys
from worker.model.rope_config import MAX_CONTEXT, RopeConfig, read_rope, read_sliding_rope

MAX_LAYERS = 4096
MAX_WIDTH = 1 << 20
MAX_HEADS = 1 << 16
MAX_EXPERTS = 4096

_ROTATES = "rope.scaling.finetuned"
"""Granite's converter says by this key whether heads are rotated. Elsewhere it only tells of a model's training."""


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """What a family declares of one of its architectures, for the metadata to be read by."""

    norm_epsilon: str = "attention.layer_norm_rms_epsilon"
    """Metadata key of the epsilon of the norms."""
    experts: Literal["none", "required", "allowed"] = "none"
    """Whether the layers are mixtures of experts: the file must then say how many, and otherwise must not."""
    has_shared_expert: bool = False
    """Whether every token goes through one more expert, which has a width of its own."""
    renormalises_experts: bool = True
    """Whether the routing weights of the chosen experts add up to one, where ``expert_weights_norm`` does not say."""
    keys: frozenset[str] = frozenset()
    """Metadata keys that change numbers and that the family reads, beside those of `worker.model.metadata_keys`."""
    idle_keys: frozenset[str] = frozenset()
    """Metadata keys that would change numbers elsewhere, and that files of the architecture hold without a meaning."""
    ignored_tensors: tuple[str, ...] = ()
    """Expressions for the names of tensors that files may hold and that the forward pass has no use for."""
    layers: LayerPattern = EQUAL_LAYERS
    """How layers differ from each other."""
    recurrence: RecurrentKind | None = None
    """What some layers are instead of attention."""
    softcaps: tuple[float, float] = (0.0, 0.0)
    """Soft caps of scores and of logits, where the file does not say."""
    sliding_rope_base: float | None = None
    """Base of the rotation in layers with a window, where the file does not say; None: there is one for all layers."""


class Scales(msgspec.Struct, frozen=True):
    """What a model multiplies by on its way; an architecture declares the keys of those that it has (granite)."""

    embedding: float = 1.0
    residual: float = 1.0
    """Of what attention and feed-forward add to the residual stream."""
    attention: float | None = None
    """Of the products of queries and keys; None: 1 / sqrt(head_dim)."""
    logits: float = 1.0
    """What logits are divided by; in Muse Glimmer, what they are multiplied by."""
    temperature: float = 0.0
    """How queries grow with their position: `kernels.weights.parameters.QueryGrowth.rate` (mistral3)."""


class ModelConfig(msgspec.Struct, frozen=True):
    """Sizes in elements; ``sliding_window`` 0 is none, ``num_experts`` 0 a dense model, a soft cap of 0 none.

    Where ``layers`` differ, ``num_kv_heads``, ``head_dim`` and ``intermediate`` are the largest of all. In a mixture of
    experts ``intermediate`` is an expert's and ``shared_intermediate`` that of the shared one, 0 without one.
    ``num_mtp_layers`` blocks follow the last layer in the file: they predict further tokens, and are not run.
    """

    architecture: str
    num_layers: int
    num_mtp_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    norm_epsilon: float
    sliding_window: int
    num_experts: int
    num_experts_used: int
    renormalises_experts: bool
    shared_intermediate: int
    rotates: bool
    """Whether heads are rotated at all."""
    rope: RopeConfig
    sliding_rope: RopeConfig
    """Of layers with a window."""
    attention_softcap: float
    logit_softcap: float
    scales: Scales
    layer_embedding: int
    """Width of the embedding that each layer has of its own; 0: none."""
    layers: tuple[LayerConfig, ...]
    recurrence: Recurrence | None
    """What recurrent layers keep, if there are any."""

    @property
    def cache_layers(self) -> tuple[LayerConfig, ...]:
        """Layers that keep keys and values of their own."""
        own = (layer for index, layer in enumerate(self.layers) if layer.cache_layer == index)
        return tuple(layer for layer in own if not layer.recurrent)

    @property
    def num_recurrent_layers(self) -> int:
        """Layers that keep a state instead of keys and values."""
        return sum(layer.recurrent for layer in self.layers)

    @property
    def query_width(self) -> int:
        """Elements of a token's queries, all heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Elements of a token's keys, all heads together, and of its values."""
        return self.num_kv_heads * self.head_dim


def read_config(gguf: GGUFFile, name: str, architectures: Mapping[str, Architecture]) -> ModelConfig:
    """The configuration of a model whose ``general.architecture`` is ``name``, one of the known ``architectures``.

    Raises `ModelLoadFailed` naming the key that is missing, of a wrong type, out of range or contradictory.
    """
    keys, architecture = MetadataKeys(gguf, name), architectures[name]
    keys.check_all_known(architecture.keys | architecture.idle_keys)
    num_blocks = keys.integer("block_count", 1, MAX_LAYERS)
    num_mtp_layers = keys.integer("nextn_predict_layers", 0, num_blocks - 1, 0)
    hidden = keys.integer("embedding_length", 1, MAX_WIDTH)
    num_heads = keys.integer("attention.head_count", 1, MAX_HEADS)
    head_dim = _head_dim(keys, hidden, num_heads)
    num_layers, kind = num_blocks - num_mtp_layers, architecture.recurrence
    recurrent = recurrent_layers(keys, kind, num_layers, MAX_WIDTH) if kind else (False,) * num_layers
    limits = LayerLimits(num_layers, num_heads, MAX_WIDTH, MAX_CONTEXT)
    layers = read_layers(keys, architecture.layers, limits, head_dim, recurrent)
    experts = _experts(keys, name, architectures, max(layer.intermediate for layer in layers))
    context_length = keys.integer("context_length", 1, MAX_CONTEXT)
    rope = read_rope(gguf, keys, head_dim, context_length)
    sliding_head_dim = next((layer.head_dim for layer in layers if layer.window), None)
    return ModelConfig(
        architecture=name,
        num_layers=len(layers),
        num_mtp_layers=num_mtp_layers,
        hidden=hidden,
        intermediate=experts.intermediate,
        num_heads=num_heads,
        num_kv_heads=max(layer.num_kv_heads for layer in layers),
        head_dim=max(layer.head_dim for layer in layers),
        vocab_size=_vocab_size(gguf, keys),
        context_length=context_length,
        norm_epsilon=keys.number(architecture.norm_epsilon, 0, 1),
        sliding_window=max(layer.window for layer in layers),
        num_experts=experts.num_experts,
        num_experts_used=experts.num_used,
        renormalises_experts=experts.renormalises,
        shared_intermediate=experts.shared_intermediate,
        rotates=keys.flag(_ROTATES, True) if _ROTATES in architecture.keys else True,
        rope=rope,
        sliding_rope=read_sliding_rope(keys, rope, architecture.sliding_rope_base, sliding_head_dim),
        attention_softcap=keys.factor("attn_logit_softcapping", architecture.softcaps[0]),
        logit_softcap=keys.factor("final_logit_softcapping", architecture.softcaps[1]),
        scales=_scales(keys, architecture.keys),
        layer_embedding=keys.integer("embedding_length_per_layer_input", 0, MAX_WIDTH, 0),
        layers=layers,
        recurrence=read_recurrence(keys, kind, hidden, MAX_WIDTH) if kind else None,
    )


class _Experts(NamedTuple):
    """What the file says of experts; ``num_experts`` 0: there are none, and ``intermediate`` is that of the layers."""

    num_experts: int
    num_used: int
    renormalises: bool
    intermediate: int
    shared_intermediate: int


def _experts(
    keys: MetadataKeys, name: str, architectures: Mapping[str, Architecture], feed_forward_length: int
) -> _Experts:
    """Those of an architecture; ``feed_forward_length`` is the file's, from which older files' widths follow."""
    architecture, count = architectures[name], keys.integer("expert_count", 0, MAX_EXPERTS, 0)
    if architecture.experts == "required" and not count:
        raise keys.error("expert_count", f"is 0: models of the architecture {name} are mixtures of experts")
    if architecture.experts == "none" and count:
        with_experts = sorted(known for known, declared in architectures.items() if declared.experts != "none")
        raise keys.error("expert_count", f"is {count}: experts are supported for {', '.join(with_experts)} only")
    if not count:
        return _Experts(0, 0, True, feed_forward_length, 0)
    num_used = keys.integer("expert_used_count", 1, count)
    renormalises = architecture.renormalises_experts
    if "expert_weights_norm" in architecture.keys:
        renormalises = keys.flag("expert_weights_norm", renormalises)
    width, shared = feed_forward_length, 0
    if architecture.has_shared_expert:
        width = max(1, feed_forward_length // num_used)
        shared = keys.integer("expert_shared_feed_forward_length", 1, MAX_WIDTH, feed_forward_length)
    width = keys.integer("expert_feed_forward_length", 1, MAX_WIDTH, width)
    return _Experts(count, num_used, renormalises, width, shared)


def _scales(keys: MetadataKeys, declared: frozenset[str]) -> Scales:
    def scale(key: str) -> float:
        return keys.factor(key) if key in declared else 0.0

    return Scales(
        embedding=scale("embedding_scale") or 1.0,
        residual=scale("residual_scale") or 1.0,
        attention=scale("attention.scale") or None,
        logits=scale("logit_scale") or 1.0,
        temperature=scale("attention.temperature_scale"),
    )


def _head_dim(keys: MetadataKeys, hidden: int, num_heads: int) -> int:
    if not keys.has("attention.key_length") and hidden % num_heads:
        raise keys.error("attention.head_count", f"is {num_heads}, which does not divide embedding_length {hidden}")
    head_dim = keys.integer("attention.key_length", 1, MAX_WIDTH, hidden // num_heads)
    if keys.integer("attention.value_length", 1, MAX_WIDTH, head_dim) != head_dim:
        raise keys.error("attention.value_length", f"is not {head_dim}: keys and values must have one length")
    return head_dim


def _vocab_size(gguf: GGUFFile, keys: MetadataKeys) -> int:
    """Rows of the embedding; the vocabulary, if the file has one, must have as many tokens."""
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelLoadFailed(f"{gguf.path}: tensor 'token_embd.weight' is missing")
    vocab_size = embedding.shape[0]
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    if tokens is not None and (not isinstance(tokens, list) or len(tokens) != vocab_size):
        raise ModelLoadFailed(
            f"{gguf.path}: tokenizer.ggml.tokens has {len(tokens) if isinstance(tokens, list) else 'not a list of'} "
            f"tokens, but tensor 'token_embd.weight' {vocab_size} rows"
        )
    if keys.integer("vocab_size", 1, MAX_CONTEXT, vocab_size) != vocab_size:
        raise keys.error("vocab_size", f"is not {vocab_size}, the rows of tensor 'token_embd.weight'")
    return vocab_size
