"""The shape of single layers, which differ in some families: heads, windows, widths, whose cache they attend to.

And which of them are recurrent, and what those keep of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from worker.model.metadata_keys import MetadataKeys

RecurrentKind = Literal["delta_net", "short_convolution"]

MAX_TAPS = 64
MAX_STATE_SIZE = 4096
DEFAULT_INTERVAL = 4  # of layers with attention, in files that do not say

DELTA_NET_KEYS = frozenset(
    {
        *("ssm.conv_kernel", "ssm.state_size", "ssm.group_count", "ssm.time_step_rank", "ssm.inner_size"),
        *("attention.recurrent_layers", "full_attention_interval"),
    }
)
SHORT_CONVOLUTION_KEYS = frozenset({"shortconv.l_cache"})


class LayerPattern(msgspec.Struct, frozen=True, kw_only=True):
    """How an architecture's layers differ from each other, for the metadata to be read by."""

    full_interval: int = 0
    """Every how many layers attention has no window, if the file has no ``attention.sliding_window_pattern``; 0: a
    window of the file is one of all layers."""
    default_window: int = 0
    """That of files without ``attention.sliding_window``."""
    differs: bool = False
    """Whether layers with a window have heads of a length of their own, and each layer may have widths of its own and
    share the cache of an earlier one."""


EQUAL_LAYERS = LayerPattern()


class LayerConfig(msgspec.Struct, frozen=True):
    """Sizes of a layer in elements; ``window`` 0 is none.

    ``cache_layer`` is the layer whose keys and values it attends to: itself, or an earlier one that has written them.
    One that is ``recurrent`` has a state instead, and no heads of keys and values.
    """

    num_kv_heads: int
    head_dim: int
    intermediate: int
    window: int
    cache_layer: int
    recurrent: bool = False

    @property
    def kv_width(self) -> int:
        """Elements of a token's keys, all heads together, and of its values."""
        return self.num_kv_heads * self.head_dim


class Recurrence(msgspec.Struct, frozen=True):
    """The state of one sequence in a recurrent layer, of which all in a model are equal; sizes in elements.

    Of a convolution with ``num_taps`` on ``channels`` it holds the last inputs. In a delta net those are queries and
    keys of ``num_key_heads`` and values of ``num_value_heads``, each of which has a matrix [key_dim, value_dim], too;
    there are no heads where the layer is a convolution.
    """

    num_taps: int
    channels: int
    num_key_heads: int = 0
    num_value_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0

    @property
    def state_size(self) -> int:
        """Elements of one layer's state."""
        return (self.num_taps - 1) * self.channels + self.num_value_heads * self.key_dim * self.value_dim

    @property
    def projected_width(self) -> int:
        """Elements of what a layer projects of a token: what is convolved, and what gates it."""
        if not self.num_value_heads:
            return 3 * self.channels
        return self.channels + self.num_value_heads * (self.value_dim + 2)


class LayerLimits(msgspec.Struct, frozen=True):
    """What the numbers of a layer must lie within."""

    num_layers: int
    num_heads: int
    max_width: int
    max_context: int


def read_layers(
    keys: MetadataKeys, pattern: LayerPattern, limits: LayerLimits, head_dim: int, recurrent: Sequence[bool]
) -> tuple[LayerConfig, ...]:
    """One for each layer, of which some are ``recurrent``. Raises `ModelLoadFailed` naming the key.

    ``head_dim`` is that of layers without a window.
    """
    num_layers = limits.num_layers
    window = keys.integer("attention.sliding_window", 0, limits.max_context, pattern.default_window)
    slides = _sliding_layers(keys, pattern, num_layers, window)
    kv_heads = _kv_heads(keys, pattern, limits, recurrent)
    sliding_head_dim, num_shared = head_dim, 0
    if pattern.differs:
        sliding_head_dim = keys.integer("attention.key_length_swa", 1, limits.max_width, head_dim)
        if keys.integer("attention.value_length_swa", 1, limits.max_width, sliding_head_dim) != sliding_head_dim:
            raise keys.error("attention.value_length_swa", f"is not {sliding_head_dim}, the length of keys")
        num_shared = keys.integer("attention.shared_kv_layers", 0, num_layers - 1, 0)
    sources = [_cache_layer(keys, slides, num_layers - num_shared, index) for index in range(num_layers)]
    for index, source in enumerate(sources):
        if kv_heads[index] != kv_heads[source]:
            raise keys.error(
                "attention.head_count_kv", f"differs between layers {source} and {index}, which share a cache"
            )
    # Mixtures of experts need not say how wide another feed-forward would be.
    key = "expert_feed_forward_length"
    width = keys.integer(key, 1, limits.max_width) if keys.has(key) else None
    widths = _per_layer(keys, pattern, "feed_forward_length", limits, width)
    return tuple(
        LayerConfig(
            num_kv_heads=kv_heads[index],
            head_dim=sliding_head_dim if slides[index] else head_dim,
            intermediate=widths[index],
            window=window if slides[index] and not recurrent[index] else 0,
            cache_layer=sources[index],
            recurrent=recurrent[index],
        )
        for index in range(num_layers)
    )


def _sliding_layers(keys: MetadataKeys, pattern: LayerPattern, num_layers: int, window: int) -> Sequence[bool]:
    """Which layers have the window."""
    key, interval = "attention.sliding_window_pattern", pattern.full_interval
    flags = None
    if keys.has_array(key):
        flags = keys.flags(key, num_layers)
    elif keys.has(key):
        interval = keys.integer(key, 1, num_layers)
    if not window:
        return [False] * num_layers
    return flags or [not interval or (index + 1) % interval != 0 for index in range(num_layers)]


def _kv_heads(
    keys: MetadataKeys, pattern: LayerPattern, limits: LayerLimits, recurrent: Sequence[bool]
) -> Sequence[int]:
    """Heads of keys and of values in each layer, none in recurrent ones, of which the file may say any number."""
    key, num_heads = "attention.head_count_kv", limits.num_heads
    if any(recurrent):
        read: Sequence[int] = keys.integers(key, limits.num_layers, 0, limits.max_width, num_heads)
        numbers = [0 if is_recurrent else number for is_recurrent, number in zip(recurrent, read, strict=True)]
    else:
        numbers = list(_per_layer(keys, pattern, key, limits, num_heads))
    for number, is_recurrent in zip(numbers, recurrent, strict=True):
        if not is_recurrent and (not number or num_heads % number):
            raise keys.error(key, f"is {number}, which does not divide {num_heads} heads")
    return numbers


def _per_layer(
    keys: MetadataKeys, pattern: LayerPattern, key: str, limits: LayerLimits, default: int | None
) -> tuple[int, ...]:
    if pattern.differs:
        return keys.integers(key, limits.num_layers, 1, limits.max_width, default)
    return (keys.integer(key, 1, limits.max_width, default),) * limits.num_layers


def _cache_layer(keys: MetadataKeys, slides: Sequence[bool], num_own: int, index: int) -> int:
    """Of layers from ``num_own`` on the last one before those that is of their kind."""
    if index < num_own:
        return index
    own = [layer for layer in range(num_own) if slides[layer] == slides[index]]
    if not own:
        raise keys.error("attention.shared_kv_layers", f"leaves layer {index} without a layer whose cache it can share")
    return own[-1]


def read_recurrence(keys: MetadataKeys, kind: RecurrentKind, hidden: int, max_width: int) -> Recurrence:
    """What the recurrent layers of a model of the width ``hidden`` keep. Raises `ModelLoadFailed` naming the key."""
    if kind == "short_convolution":
        return Recurrence(keys.integer("shortconv.l_cache", 1, MAX_TAPS), hidden)
    num_key_heads = keys.integer("ssm.group_count", 1, max_width)
    num_value_heads = keys.integer("ssm.time_step_rank", 1, max_width)
    if num_value_heads % num_key_heads:
        raise keys.error("ssm.group_count", f"is {num_key_heads}, which does not divide {num_value_heads} value heads")
    value_width = keys.integer("ssm.inner_size", 1, max_width)
    if value_width % num_value_heads or value_width // num_value_heads > MAX_STATE_SIZE:
        raise keys.error(
            "ssm.inner_size",
            f"is {value_width}: it must be {num_value_heads} (ssm.time_step_rank) times 1 to {MAX_STATE_SIZE}",
        )
    key_dim = keys.integer("ssm.state_size", 1, MAX_STATE_SIZE)
    return Recurrence(
        num_taps=keys.integer("ssm.conv_kernel", 1, MAX_TAPS),
        channels=2 * num_key_heads * key_dim + value_width,
        num_key_heads=num_key_heads,
        num_value_heads=num_value_heads,
        key_dim=key_dim,
        value_dim=value_width // num_value_heads,
    )


def recurrent_layers(keys: MetadataKeys, kind: RecurrentKind, num_layers: int, max_width: int) -> tuple[bool, ...]:
    """Which of the layers are recurrent; the others have attention, and one of them at least.

    Raises `ModelLoadFailed` naming the key.
    """
    if kind == "short_convolution":
        key = "attention.head_count_kv"
        recurrent = tuple(not number for number in keys.integers(key, num_layers, 0, max_width))
    elif keys.has("attention.recurrent_layers"):
        key = "attention.recurrent_layers"
        recurrent = keys.flags(key, num_layers) or ()
    else:
        key = "full_attention_interval"
        interval = keys.integer(key, 1, max_width, DEFAULT_INTERVAL)
        recurrent = tuple((index + 1) % interval != 0 for index in range(num_layers))
    if all(recurrent):
        raise keys.error(key, f"leaves none of the {num_layers} layers with attention, which is not supported")
    return recurrent
