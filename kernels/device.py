"""The one seam to a device: where its ops come from, how weights get there, how much memory is used."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

import kernels.reference
from kernels.formats import Format
from kernels.reference.matmul import Matrix, TileBudget

DEFAULT_DEQUANT_CACHE_BYTES = 512 * 1024 * 1024
DEFAULT_VRAM_FRACTION = 0.9

# For the end of what `DeviceUnavailable` says.
INSTALL_CUDA = "install it with pip install 'orcd[cuda13]' (or cuda12)"
USE_CPU = "or run on the CPU with --device cpu (or ORCD_DEVICE=cpu)"


class DeviceUnavailable(Exception):
    """The device that was asked for cannot be used here; the message says what to do."""


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
    def ops(self) -> ModuleType:
        """The package of ops that work on this device's arrays; `kernels.reference` says which there are."""

    @property
    def cache_dtype(self) -> np.dtype[Any]:
        """Type of the numbers in the KV cache."""

    def matrix(self, format_: Format, data: NDArray[np.uint8]) -> Any:
        """A weight for the ops from its blocks, uint8 [outputs, row_bytes]."""

    def vector(self, values: NDArray[np.float32]) -> Any:
        """A small float32 array (norm, bias) for the ops."""

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """An array with arbitrary contents."""

    def memory_bytes(self) -> int:
        """Device memory that this process uses now."""

    def verify_residency(self) -> list[str]:
        """A line for each buffer that is not plain device memory (managed, host, another device); none: all is well."""


class CpuDevice:
    """NumPy on this machine's memory: for tests, demos and machines without a GPU."""

    name = description = "cpu"
    budget_bytes = None
    ops = kernels.reference
    cache_dtype = np.dtype(np.float32)

    def __init__(self, dequant_cache_bytes: int) -> None:
        self._budget = TileBudget(dequant_cache_bytes)

    def matrix(self, format_: Format, data: NDArray[np.uint8]) -> Matrix:
        """``data`` stays where it is: usually a mapped file."""
        num_inputs = data.shape[1] // format_.block_bytes * format_.block_elements
        return Matrix(format_, (data.shape[0], num_inputs), data, self._budget)

    def vector(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        return np.empty(shape, dtype)

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
