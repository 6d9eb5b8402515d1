"""The one seam to a device: where its ops come from, how weights get there, how much memory is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kernels.weights.parameters import Router, Weight

Allocate = Callable[[tuple[int, ...], DTypeLike], Any]
"""Gives an array of a shape and a type, with arbitrary contents."""


class WeightStore(Protocol):
    """Makes of a model's weights what the device's ops work on; `load` then brings them there."""

    def table(self, weight: Weight) -> Any:
        """An embedding table."""

    def tied_table(self, projection: Any) -> Any:
        """The matrix of an output head as embedding table."""

    def projection(self, weights: Sequence[Weight]) -> Any:
        """Matrices on one input, their outputs side by side."""

    def gate_up(self, weights: Sequence[Weight]) -> Any:
        """Gate and up projection, two tensors or a fused one (gate first)."""

    def experts(self, gate: Weight, up: Weight, down: Weight) -> Any:
        """The stacked experts of a layer."""

    def router(self, weight: Weight, num_used: int) -> Router:
        """A router that chooses ``num_used`` experts."""

    def vector(self, values: NDArray[np.float32]) -> Any:
        """A small float32 array (norm, bias, sinks)."""

    def load(self, progress: Callable[[int, int], None]) -> list[str]:
        """Bring everything to the device; the names of the tensors that hold NaN or infinity.

        ``progress(num_bytes, total_bytes)`` is called on the way.
        """


class Device(Protocol):
    """What a model needs of a device."""

    @property
    def name(self) -> str:
        """``cpu`` or ``cuda:N``."""

    @property
    def description(self) -> str:
        """What the device is, for people: ``cpu``, or what the maker calls the GPU."""

    @property
    def budget_bytes(self) -> int | None:
        """Device memory that this process may use, decided when the device was opened; None: there is no limit."""

    @property
    def ops(self) -> Any:
        """The ops that work on this device's arrays, by name; `kernels.reference` says which there are."""

    @property
    def head_dims(self) -> tuple[int, ...]:
        """Sizes of attention heads that its ops can compute with; empty: any."""

    @property
    def store(self) -> WeightStore:
        """Where a model's weights go."""

    @property
    def cache_dtype(self) -> np.dtype[Any]:
        """Type of the numbers in the KV cache."""

    @property
    def activation_dtype(self) -> np.dtype[Any]:
        """Type of what goes from op to op, the residual stream and logits (float32) excepted."""

    def begin_step(self) -> Allocate:
        """Start a forward pass: gives arrays that live until the next one starts."""

    def cache_array(self, num_blocks: int, block_tokens: int, num_kv_heads: int, head_dim: int) -> Any:
        """K or V of a layer, in the layout of the device's attention; arbitrary contents, never given back."""

    def memory_bytes(self) -> int:
        """Device memory that this process uses now."""

    def verify_residency(self) -> list[str]:
        """A line for each buffer that is not plain device memory (managed, host, another device); none: all is well."""
