"""An NVIDIA GPU: memory, a stream, copies, events and graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kernels.cache_format import FLOAT16, CacheFormat
from kernels.devices.arena_device import ArenaDevice
from kernels.errors import INSTALL_CUDA, USE_CPU, CudaFailure, DeviceUnavailable
from kernels.ops.decode_step import copy_to_host
from kernels.runtime import cuda_runtime, driver
from kernels.runtime.compiler import Compiler, Variant, architecture
from kernels.runtime.cuda_runtime import DeviceProperties, Event, Graph, Stream
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import GpuSpec
from kernels.runtime.launcher import Context, LaunchList
from kernels.runtime.memory import Arena, DeviceMemory, MemoryPlan, pinned, verify_residency
from kernels.runtime.module_cache import ModuleCache
from kernels.weights.half_copy import HalfCopies
from kernels.weights.upload import PinnedBuffers

OLDEST = (8, 0)  # compute capability with cp.async and mma of float16


class CudaDevice(ArenaDevice):
    """One GPU. Until `allocate` it has no memory and a dry `context`; raises `DeviceUnavailable`."""

    budget_bytes: int

    def __init__(
        self, index: int, *, vram_fraction: float, vram_bytes: int, cache_format: CacheFormat = FLOAT16
    ) -> None:
        self.index = index
        properties = _open(index)
        gpu = GpuSpec(architecture(*properties.capability), properties.num_sms, properties.shared_bytes)
        super().__init__(f"cuda:{index}", gpu, properties.name, cache_format)
        self._free_at_start, self.total_bytes = cuda_runtime.memory_info()
        budget = int(self._free_at_start * vram_fraction)
        self.budget_bytes = min(budget, vram_bytes) if vram_bytes else budget
        self.stream = Stream()
        self.modules = ModuleCache(Compiler(self.gpu.arch))
        self._memory = DeviceMemory()
        self._buffers: PinnedBuffers | None = PinnedBuffers()  # while memory is planned: that takes as long

    @property
    def free_bytes(self) -> int:
        """Device memory that nobody uses now."""
        return cuda_runtime.memory_info()[0]

    def allocate(
        self, plan: MemoryPlan, variants: Iterable[Variant] = (), copied: frozenset[int] = frozenset()
    ) -> None:
        """Take all the memory that will ever be used, and a `context` that launches; raises `OutOfDeviceMemory`.

        ``variants`` are compiled, on all cores, and loaded here: no later launch of them waits for a compiler.
        ``copied``: the numbers of the matrices that get a copy in float16.
        """
        plan.check(self.budget_bytes)
        self.modules.prepare(variants)
        weights, kv_cache, step_buffers, scratch = (
            self._memory.allocate(name.replace("_", " "), getattr(plan, name))
            for name in ("weights", "kv_cache", "step_buffers", "scratch")
        )
        context = Context(self.gpu, modules=self.modules, stream=self.stream, arena=scratch)
        copies = None
        if plan.weight_copies:
            arena = self._memory.allocate("weight copies", plan.weight_copies)
            copies = HalfCopies(arena, lambda number, _: number in copied)
        buffers, self._buffers = self._buffers, None  # the store gives them back when all is loaded
        self.use(context, weights=weights, kv_cache=kv_cache, step_buffers=step_buffers, copies=copies, buffers=buffers)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array in page-locked host memory, for the asynchronous copies."""
        return pinned(shape, dtype)

    def upload(self, arena: Arena, values: NDArray[Any]) -> DeviceArray:
        """A copy of ``values`` in ``arena``, ready for what is enqueued from now on. Any host memory will do."""
        array = arena.allocate(values.shape, values.dtype)
        if array.pointer:
            self.copy_to_device_async(array, np.ascontiguousarray(values))
        return array

    def download(self, array: DeviceArray) -> NDArray[Any]:
        """A copy in host memory, once all that is enqueued is done: for tests and tools."""
        values = np.empty(array.shape, array.dtype)
        self.stream.copy_to_host(values.ctypes.data, array.pointer, values.nbytes)
        self.stream.synchronise()
        return values

    def copy_to_device_async(self, target: DeviceArray, source: NDArray[Any]) -> None:
        """Enqueue a copy of the same size. A pinned source must stay as it is until the copy is done."""
        assert source.flags.c_contiguous and source.nbytes == target.nbytes, f"{source.shape} into {target.shape}"
        self.stream.copy_to_device(target.pointer, source.ctypes.data, source.nbytes)

    def uploader(self, source: NDArray[np.uint8]) -> Callable[[DeviceArray], None]:
        """What enqueues that an array becomes what a `pinned` buffer begins with.

        `copy_to_device_async` takes longer to ask NumPy where ``source`` is than to enqueue the copy.
        """
        address, size, copy = source.ctypes.data, source.nbytes, self.stream.copy_to_device

        def upload(target: DeviceArray) -> None:
            num_bytes = target.nbytes
            assert num_bytes <= size, f"{num_bytes} bytes from a buffer of {size}"
            copy(target.pointer, address, num_bytes)

        return upload

    def copy_to_host_async(self, target: NDArray[Any], source: DeviceArray) -> None:
        """Enqueue a copy of some KB to a `pinned` array of the same size.

        It is there once an event recorded after it has happened.
        """
        copy_to_host(self.context, source, target)

    def event(self) -> Event:
        """An event of the device's stream, not yet recorded."""
        return Event(self.stream)

    def synchronise(self) -> None:
        """Wait for all that is enqueued; raises `CudaFailure` if something of it failed."""
        self.stream.synchronise()

    def capture(self, enqueue: Callable[[], None], name: str) -> Graph:
        """What ``enqueue`` enqueues, as a graph; ``name`` tells which one failed. Its kernels must have run before."""
        return self.stream.capture(enqueue, name)

    def record(self, enqueue: Callable[[], None]) -> LaunchList:
        """The few kernels that ``enqueue`` launches, doing nothing else, as what launches them one by one.

        They begin sooner than a graph. They must have run before.
        """
        return self.context.record(enqueue)

    def memory_bytes(self) -> int:
        """Device memory taken since the device was opened, by whatever the driver counts."""
        return max(0, self._free_at_start - self.free_bytes)

    def verify_residency(self) -> list[str]:
        """A line for each allocation that is not plain memory of this device; none: all is well."""
        return verify_residency(self._memory.pointers, self.index)

    def close(self) -> None:
        """Wait, then give all memory back."""
        self.synchronise()
        self._memory.close()


def _open(index: int) -> DeviceProperties:
    """Make the GPU the process's; its properties."""
    name = f"cuda:{index}"
    try:
        cuda_runtime.import_library()
        driver.import_library()
    except ImportError as error:
        missing = "cupy" if (error.name or "").startswith("cupy") else error.name
        raise DeviceUnavailable(f"{name}: the Python package {missing} is missing; {INSTALL_CUDA}, {USE_CPU}") from None
    try:
        count = cuda_runtime.num_devices()
        if index >= count:
            raise DeviceUnavailable(f"{name}: this machine has {count} CUDA device(s), counted from 0; {USE_CPU}")
        properties = cuda_runtime.use_device(index)
    except CudaFailure as failure:
        raise DeviceUnavailable(
            f"{name}: there is no CUDA device here ({failure.error}); install NVIDIA's driver, {USE_CPU}"
        ) from None
    if properties.capability < OLDEST:
        found, needed = (".".join(map(str, pair)) for pair in (properties.capability, OLDEST))
        raise DeviceUnavailable(f"{name} has compute capability {found}, {needed} or later is needed; {USE_CPU}")
    try:
        driver.nvrtc_version()
    except CudaFailure:
        raise DeviceUnavailable(f"{name}: the library NVRTC is missing; {INSTALL_CUDA}, {USE_CPU}") from None
    return properties
