"""The shape of single layers, which differ in some families: heads, windows, widths, and whose cache they attend to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from worker.model.metadata_keys import MetadataKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPattern:
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


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """Sizes of a layer in elements; ``window`` 0 is none.

    ``cache_layer`` is the layer whose keys and values it attends to: itself, or an earlier one that has written them.
    """

    num_kv_heads: int
    head_dim: int
    intermediate: int
    window: int
    cache_layer: int

    @property
    def kv_width(self) -> int:
        """Elements of a token's keys, all heads together, and of its values."""
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class LayerLimits:
    """What the numbers of a layer must lie within."""

    num_layers: int
    num_heads: int
    max_width: int
    max_context: int


def read_layers(
    keys: MetadataKeys, pattern: LayerPattern, limits: LayerLimits, head_dim: int
) -> tuple[LayerConfig, ...]:
    """One for each layer. ``head_dim`` is that of layers without a window. Raises `ModelLoadFailed` naming the key."""
    num_layers, num_heads = limits.num_layers, limits.num_heads
    window = keys.integer("attention.sliding_window", 0, limits.max_context, pattern.default_window)
    slides = _sliding_layers(keys, pattern, num_layers, window)
    kv_heads = _per_layer(keys, pattern, "attention.head_count_kv", limits, num_heads)
    for number in kv_heads:
        if num_heads % number:
            raise keys.error("attention.head_count_kv", f"is {number}, which does not divide {num_heads} heads")
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
    widths = _per_layer(keys, pattern, "feed_forward_length", limits, None)
    return tuple(
        LayerConfig(
            num_kv_heads=kv_heads[index],
            head_dim=sliding_head_dim if slides[index] else head_dim,
            intermediate=widths[index],
            window=window if slides[index] else 0,
            cache_layer=sources[index],
        )
        for index in range(num_layers)
    )


def _sliding_layers(keys: MetadataKeys, pattern: LayerPattern, num_layers: int, window: int) -> Sequence[bool]:
    """Which layers have the window."""
    flags = keys.flags("attention.sliding_window_pattern", num_layers) if pattern.differs else None
    if not window:
        return [False] * num_layers
    interval = pattern.full_interval
    return flags or [not interval or (index + 1) % interval != 0 for index in range(num_layers)]


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
