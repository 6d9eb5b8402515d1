"""The one seam to a device: where its ops come from, how weights get there, how much memory is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

import kernels.reference
from kernels.layers import Router, Weight
from kernels.reference.matmul import TileBudget
from kernels.reference.store import CpuStore

DEFAULT_DEQUANT_CACHE_BYTES = 512 * 1024 * 1024
DEFAULT_VRAM_FRACTION = 0.9

# For the end of what `DeviceUnavailable` says.
INSTALL_CUDA = "install it with pip install 'orcd[cuda13]' (or cuda12)"
USE_CPU = "or run on the CPU with --device cpu (or ORCD_DEVICE=cpu)"


class DeviceUnavailable(Exception):
    """The device that was asked for cannot be used here; the message says what to do."""


Allocate = Callable[[tuple[int, ...], DTypeLike], Any]
"""Gives an array of a shape and a type, with arbitrary contents."""


class Store(Protocol):
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
        """Bring everything to the device; ``progress(num_bytes, total_bytes)`` is called on the way. Returns the names
        of the tensors that hold NaN or infinity."""


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
    def store(self) -> Store:
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


class CpuDevice:
    """NumPy on this machine's memory: for tests, demos and machines without a GPU."""

    name = description = "cpu"
    budget_bytes = None
    ops = kernels.reference
    head_dims = ()
    cache_dtype = np.dtype(np.float32)

    activation_dtype = np.dtype(np.float32)

    def __init__(self, dequant_cache_bytes: int) -> None:
        self.store = CpuStore(TileBudget(dequant_cache_bytes))

    def begin_step(self) -> Allocate:
        return np.empty

    def cache_array(self, num_blocks: int, block_tokens: int, num_kv_heads: int, head_dim: int) -> NDArray[np.float32]:
        return np.empty((num_blocks, block_tokens, num_kv_heads, head_dim), np.float32)

    def memory_bytes(self) -> int:
        """Resident memory of the process; 0 where the system does not tell (no /proc)."""
        try:
            status = Path("/proc/self/status").read_text()
        except OSError:
            return 0
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))

    def verify_residency(self) -> list[str]:
        return []


def open_device(
    name: str,
    *,
    dequant_cache_bytes: int = DEFAULT_DEQUANT_CACHE_BYTES,
    vram_fraction: float = DEFAULT_VRAM_FRACTION,
    vram_bytes: int = 0,
) -> Device:
    """The device ``cpu`` or ``cuda:N``; raises `DeviceUnavailable`. A GPU is never replaced by the CPU in silence.

    ``dequant_cache_bytes`` bounds the expanded weights that the CPU device keeps. A CUDA device may use
    ``vram_fraction`` of the memory that is free now, at most ``vram_bytes`` unless that is 0.
    """
    if name == "cpu":
        return CpuDevice(dequant_cache_bytes)
    kind, _, index = name.partition(":")
    if kind == "cuda" and index.isdecimal():
        try:
            from kernels.gpu import CudaDevice
        except ImportError as error:
            missing = error.name or "cupy"
            if missing.startswith("kernels"):
                raise  # a bug of ours
            raise DeviceUnavailable(
                f"{name}: the Python package {missing} is missing; {INSTALL_CUDA}, {USE_CPU}"
            ) from None
        return CudaDevice(int(index), vram_fraction=vram_fraction, vram_bytes=vram_bytes)
    raise DeviceUnavailable(f"{name}: unknown device; choose cpu or cuda:N")
