"""Devices by name."""

from __future__ import annotations

from kernels.cache_format import FLOAT16, FLOAT32, Q8
from kernels.devices.cpu import CpuDevice
from kernels.devices.device_name import gpu_index
from kernels.devices.protocol import GpuDevice
from kernels.errors import DeviceUnavailable

DEFAULT_DEQUANT_CACHE_BYTES = 512 * 1024 * 1024
DEFAULT_VRAM_FRACTION = 0.9

CPU_CACHE_FORMATS = {"f16": FLOAT32, "q8": Q8}
CUDA_CACHE_FORMATS = {"f16": FLOAT16, "q8": Q8}
"""Type of the KV cache, as it is asked for -> what it is on the device."""


def open_device(
    name: str,
    *,
    dequant_cache_bytes: int = DEFAULT_DEQUANT_CACHE_BYTES,
    vram_fraction: float = DEFAULT_VRAM_FRACTION,
    vram_bytes: int = 0,
    cache_type: str = "f16",
) -> CpuDevice | GpuDevice:
    """The device ``cpu`` or ``cuda:N``; raises `DeviceUnavailable`. A GPU is never replaced by the CPU silently.

    ``dequant_cache_bytes`` bounds the expanded weights that the CPU device keeps. A CUDA device may use
    ``vram_fraction`` of the memory that is free now, at most ``vram_bytes`` unless that is 0. ``cache_type``: the
    device's own type of numbers ("f16"), or codes of 8 bits ("q8").
    """
    if name == "cpu":
        return CpuDevice(dequant_cache_bytes, CPU_CACHE_FORMATS[cache_type])
    index = gpu_index(name)
    if index is not None:
        from kernels.devices.cuda import CudaDevice  # not at the top: the CPU device needs nothing of CUDA's

        cache_format = CUDA_CACHE_FORMATS[cache_type]
        return CudaDevice(index, vram_fraction=vram_fraction, vram_bytes=vram_bytes, cache_format=cache_format)
    raise DeviceUnavailable(f"{name}: unknown device; choose cpu or cuda:N")
