"""How a model's heads are rotated, from a GGUF's metadata; `worker.model.rope_scaling` makes frequencies of it."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from worker.model.gguf import GGUFFile
from worker.model.metadata_keys import MetadataKeys

MAX_CONTEXT = 1 << 30


class RopeConfig(msgspec.Struct, frozen=True):
    """Rotary embedding: base and scaling; see `worker.model.rope_scaling` for what the types mean."""

    num_dimensions: int
    base: float
    scaling: str  # none, linear, yarn, longrope
    factor: float
    original_context_length: int
    attention_factor: float | None  # None: what the scaling's formula gives; YaRN's is multiplied by it
    beta_fast: float
    beta_slow: float
    yarn_attention_factor: float | None  # from 1 on: in place of what YaRN's formula gives
    yarn_extrapolation: float  # share of YaRN's blending that takes place
    yarn_log_multiplier: float  # of the logarithm that YaRN's attention factor is divided by; 0: it is not


def read_rope(gguf: GGUFFile, keys: MetadataKeys, head_dim: int, context_length: int) -> RopeConfig:
    """The rotation of heads of ``head_dim`` elements. Raises `ModelLoadFailed` naming the key."""
    num_dimensions = keys.integer("rope.dimension_count", 2, head_dim, head_dim)
    if num_dimensions % 2:
        raise keys.error("rope.dimension_count", f"is {num_dimensions}; rotated elements come in pairs")
    factor = keys.factor("rope.scaling.factor") or keys.factor("rope.scale_linear") or 1.0
    # As in llama.cpp, a factor without a type is linear.
    default = "none" if factor == 1 else "linear"
    scaling = keys.text("rope.scaling.type", ("none", "linear", "yarn", "longrope"), default)
    has_long_factors = "rope_factors_long.weight" in gguf.tensors
    if scaling == "longrope" and (factor != 1 or not has_long_factors):
        raise keys.error("rope.scaling.type", "is longrope: its factors must be tensors, and rope.scaling.factor 1")
    if scaling in ("linear", "yarn") and has_long_factors:
        raise keys.error("rope.scaling.type", f"({scaling}) and tensor 'rope_factors_long.weight' exclude each other")
    original = keys.integer("rope.scaling.original_context_length", 0, MAX_CONTEXT, 0) or context_length
    if has_long_factors and original < 2:
        raise keys.error("rope.scaling.original_context_length", f"is {original}; longrope needs at least 2")
    extrapolation = keys.number("rope.scaling.yarn_ext_factor", -1, 1, -1.0)  # negative: not set
    if scaling != "yarn" and extrapolation > 0:
        raise keys.error("rope.scaling.yarn_ext_factor", f"is {extrapolation:g}, but rope.scaling.type {scaling}")
    return RopeConfig(
        num_dimensions=num_dimensions,
        base=keys.number("rope.freq_base", 1 + 1e-6, 1e12, 10_000.0),
        scaling=scaling,
        factor=factor,
        original_context_length=original,
        attention_factor=_optional(keys, "rope.scaling.attn_factor"),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 1e-6, 1e6, 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1e-6, 1e6, 1.0),
        yarn_attention_factor=_optional(keys, "rope.scaling.yarn_attn_factor"),
        yarn_extrapolation=1.0 if extrapolation < 0 else extrapolation,
        yarn_log_multiplier=keys.number("rope.scaling.yarn_log_multiplier", 0, 1e3, 0.0),
    )


def read_sliding_rope(keys: MetadataKeys, rope: RopeConfig, base: float | None, head_dim: int | None) -> RopeConfig:
    """That of layers with a window, whose heads have ``head_dim`` elements (None: there are no such layers).

    It has a base of its own, which is ``base`` where the file does not say, and no scaling; without a ``base`` it is
    ``rope``, that of all others.
    Raises `ModelLoadFailed` naming the key.
    """
    if base is None or head_dim is None:
        return rope
    num_dimensions = keys.integer("rope.dimension_count_swa", 2, head_dim, head_dim)
    if num_dimensions % 2:
        raise keys.error("rope.dimension_count_swa", f"is {num_dimensions}; rotated elements come in pairs")
    base = keys.number("rope.freq_base_swa", 1 + 1e-6, 1e12, base)
    return replace(rope, num_dimensions=num_dimensions, base=base, scaling="none", factor=1.0, attention_factor=None)


def _optional(keys: MetadataKeys, key: str) -> float | None:
    return keys.number(key, 0, 1e3) if keys.has(key) else None
