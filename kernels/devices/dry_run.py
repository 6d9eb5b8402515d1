"""A CUDA device without a GPU: a model is laid out and run through once, to find out what a GPU would have to hold."""

from __future__ import annotations

from kernels.cache_format import FLOAT16, CacheFormat
from kernels.devices.arena_device import ArenaDevice
from kernels.runtime.gpu_spec import H100, GpuSpec
from kernels.weights.half_copy import IsCopied


class DryRunDevice(ArenaDevice):
    """A device that has no memory and launches nothing: every pointer is 0, only bytes and kernels are counted."""

    def __init__(
        self,
        name: str,
        gpu: GpuSpec = H100,
        cache_format: CacheFormat = FLOAT16,
        is_copied: IsCopied | None = None,
    ) -> None:
        super().__init__(name, gpu, f"a planned {gpu.arch}", cache_format, is_copied)

    def memory_bytes(self) -> int:
        """Bytes laid out so far, scratch included."""
        arenas = (self.weights, self.weight_copies, self.kv_cache, self.step_buffers)
        return sum(arena.high_water_bytes for arena in arenas) + self.context.high_water_bytes

    def verify_residency(self) -> list[str]:
        """Nothing: there is no memory."""
        return []
