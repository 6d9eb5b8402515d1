"""Devices by name."""

from __future__ import annotations

from kernels.devices.cpu import CpuDevice
from kernels.devices.cuda import CudaDevice
from kernels.devices.protocol import GpuDevice
from kernels.errors import DeviceUnavailable

DEFAULT_DEQUANT_CACHE_BYTES = 512 * 1024 * 1024
DEFAULT_VRAM_FRACTION = 0.9


def open_device(
    name: str,
    *,
    dequant_cache_bytes: int = DEFAULT_DEQUANT_CACHE_BYTES,
    vram_fraction: float = DEFAULT_VRAM_FRACTION,
    vram_bytes: int = 0,
) -> CpuDevice | GpuDevice:
    """The device ``cpu`` or ``cuda:N``; raises `DeviceUnavailable`. A GPU is never replaced by the CPU silently.

    ``dequant_cache_bytes`` bounds the expanded weights that the CPU device keeps. A CUDA device may use
    ``vram_fraction`` of the memory that is free now, at most ``vram_bytes`` unless that is 0.
    """
    if name == "cpu":
        return CpuDevice(dequant_cache_bytes)
    kind, _, index = name.partition(":")
    if kind == "cuda" and index.isdecimal():
        return CudaDevice(int(index), vram_fraction=vram_fraction, vram_bytes=vram_bytes)
    raise DeviceUnavailable(f"{name}: unknown device; choose cpu or cuda:N")
