"""The metadata keys of one architecture: typed and range-checked, and none that would change numbers unread."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from typing import Any

from orcd.errors import ModelLoadFailed
from worker.model.gguf import GGUFFile

_CHANGES_NUMBERS = re.compile(
    r"(rope|attention|ssm|shortconv)\..*|expert_.*|.*_(scale|softcapping)"
    r"|leading_dense_block_count|interleave_moe_layer_step|full_attention_interval|embedding_length_per_layer_input|use_parallel_residual"
)
"""A key of these that nobody reads is a variant that would be computed wrongly. Other keys only tell."""

_KNOWN = frozenset(
    (
        *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
        *("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "attention.sliding_window"),
        *("expert_count", "expert_used_count", "expert_feed_forward_length"),
        *("rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor"),
        *("rope.scaling.original_context_length", "rope.scaling.attn_factor", "rope.scaling.finetuned"),
        *("rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_log_multiplier"),
        *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
    )
)
"""Keys that are read for every architecture, or mean nothing for its numbers."""

_WITHOUT_EFFECT: Mapping[str, tuple[float, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.kv_lora_rank": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.q_lora_rank": (0,),
    "attention.relative_buckets_count": (0,),
    "attention.scale": (0,),
    "attention.shared_kv_layers": (0,),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_length_per_layer_input": (0,),
    "embedding_scale": (0, 1),
    "expert_gating_func": (0, 1),  # softmax
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_shared_feed_forward_length": (0,),
    "expert_weights_norm": (True,),
    "expert_weights_scale": (0, 1),
    "final_logit_softcapping": (0,),
    "leading_dense_block_count": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "rope.scaling.alpha": (0,),
    "use_parallel_residual": (False,),
}
"""Values with which a key leaves every number as it is; some programs write all keys, with 0 for what is not used."""


class MetadataKeys:
    """The keys of an architecture by their names without its prefix; errors name file and key.

    An array with a value for each layer counts as one value where all are the same.
    """

    def __init__(self, gguf: GGUFFile, architecture: str) -> None:
        self._gguf = gguf
        self._prefix = f"{architecture}."

    def integer(self, key: str, least: int, most: int, default: int | None = None) -> int:
        """A whole number; without a default the key must be there."""
        return self._checked_integer(key, self._one(key, default), least, most)

    def integers(self, key: str, num_layers: int, least: int, most: int, default: int | None = None) -> tuple[int, ...]:
        """A whole number for each of the first ``num_layers`` blocks: an array, or one number for all of them."""
        values = self._value(key, default)
        if not isinstance(values, list):
            return (self._checked_integer(key, values, least, most),) * num_layers
        self._check_length(key, values)
        return tuple(self._checked_integer(key, value, least, most) for value in values[:num_layers])

    def flags(self, key: str, num_layers: int) -> tuple[bool, ...] | None:
        """True or false for each of the first ``num_layers`` blocks; None without the key."""
        if not self.has(key):
            return None
        values = self._value(key, None)
        if not isinstance(values, list):
            raise self.error(key, f"is {shown(values)}; it must be an array of true and false")
        self._check_length(key, values)
        if not all(isinstance(value, bool) for value in values):
            raise self.error(key, f"is {shown(values)}; it must be an array of true and false")
        return tuple(values[:num_layers])

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"is {shown(value)}; it must be true or false")
        return value

    def number(self, key: str, least: float, most: float, default: float | None = None) -> float:
        """A finite number."""
        value = self._one(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.error(key, f"is {shown(value)}; it must be a number from {least:g} to {most:g}")
        return float(value)

    def factor(self, key: str, default: float = 0.0) -> float:
        """By what something is extended or scaled, or a soft cap; 0, which some programs write, for none."""
        factor = self.number(key, 0, 1e6, default)
        return self.number(key, 1e-6, 1e6, default) if factor else 0.0

    def text(self, key: str, choices: tuple[str, ...], default: str) -> str:
        """One of ``choices``."""
        value = self._value(key, default)
        if value not in choices:
            raise self.error(key, f"is {shown(value)}; known are {', '.join(choices)}")
        return str(value)

    def has(self, key: str) -> bool:
        """Whether the file has the key."""
        return self._prefix + key in self._gguf.metadata

    def has_array(self, key: str) -> bool:
        """Whether the file has the key, with an array."""
        return isinstance(self._gguf.metadata.get(self._prefix + key), list)

    def check_all_known(self, more: Set[str]) -> None:
        """Whether every key that changes numbers is known to all architectures, or is one of the ``more`` of this one.

        Raises `ModelLoadFailed` naming the first that is not.
        """
        for name, value in self._gguf.metadata.items():
            key = name.removeprefix(self._prefix)
            if key == name or key in _KNOWN or key in more or not _CHANGES_NUMBERS.fullmatch(key):
                continue
            if isinstance(value, str | list) or value not in _WITHOUT_EFFECT.get(key, ()):
                raise self.error(
                    key, f"({shown(value)}) is not known for this architecture: the file holds a variant that is not"
                    " supported"
                )  # fmt: skip

    def error(self, key: str, problem: str) -> ModelLoadFailed:
        """The error that names the file and the key, to be raised."""
        return ModelLoadFailed(f"{self._gguf.path}: metadata key {self._prefix}{key} {problem}")

    def _value(self, key: str, default: Any) -> Any:
        value = self._gguf.metadata.get(self._prefix + key, default)
        if value is None:
            raise self.error(key, "is missing")
        return value

    def _one(self, key: str, default: Any) -> Any:
        """The value of a key that has one for all layers."""
        value = self._value(key, default)
        if not isinstance(value, list):
            return value
        self._check_length(key, value)
        if value.count(value[0]) < len(value):
            raise self.error(key, f"is {shown(value)}: it differs between layers, which is not supported for it")
        return value[0]

    def _checked_integer(self, key: str, value: Any, least: int, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(key, f"is {shown(value)}; it must be a whole number from {least} to {most}")
        return value

    def _check_length(self, key: str, values: list[Any]) -> None:
        num_blocks = self._gguf.metadata.get(f"{self._prefix}block_count")
        if not values or len(values) != num_blocks:
            raise self.error(key, f"has {len(values)} values for {shown(num_blocks)} layers")


def shown(value: Any) -> str:
    """A value of the file for an error message, which stays short whatever the file holds."""
    text = repr(value[:16] if isinstance(value, list) else value)
    return text if len(text) <= 60 else f"{text[:60]}..."
