"""An NVIDIA GPU through CuPy: memory, streams, copies, events and graphs.

Imports CuPy, so that only `kernels.devices.open` may import this, and only when a GPU is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import cupy
import numpy as np
from cuda.bindings import nvrtc
from cupy.cuda import runtime
from numpy.typing import DTypeLike, NDArray

from kernels.devices.arena_device import ArenaDevice
from kernels.errors import INSTALL_CUDA, USE_CPU, CudaFailure, DeviceUnavailable
from kernels.ops.decode_step import copy_to_host
from kernels.runtime.compiler import Compiler, Variant, architecture
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import GpuSpec
from kernels.runtime.launcher import Context
from kernels.runtime.memory import Arena, DeviceMemory, MemoryPlan, pinned, verify_residency
from kernels.runtime.module_cache import ModuleCache

OLDEST = (8, 0)  # compute capability with cp.async and mma of float16

SPINS = 200  # queries of an event before the host sleeps between them
SLEEP_S = 50e-6
_NOT_READY = 600  # cudaErrorNotReady


class CudaDevice(ArenaDevice):
    """One GPU. Until `allocate` it has no memory and a dry `context`; raises `DeviceUnavailable`."""

    budget_bytes: int

    def __init__(self, index: int, *, vram_fraction: float, vram_bytes: int) -> None:
        self.index = index
        properties = _open(index)
        gpu = GpuSpec(
            architecture(properties["major"], properties["minor"]),
            properties["multiProcessorCount"],
            runtime.deviceGetAttribute(runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
        )
        super().__init__(f"cuda:{index}", gpu, properties["name"].decode())
        self._free_at_start: int
        self.total_bytes: int
        self._free_at_start, self.total_bytes = runtime.memGetInfo()
        budget = int(self._free_at_start * vram_fraction)
        self.budget_bytes = min(budget, vram_bytes) if vram_bytes else budget
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.modules = ModuleCache(Compiler(self.gpu.arch))
        self._memory = DeviceMemory()

    @property
    def free_bytes(self) -> int:
        """Device memory that nobody uses now."""
        free_bytes: int = runtime.memGetInfo()[0]
        return free_bytes

    def allocate(self, plan: MemoryPlan, variants: Iterable[Variant] = ()) -> None:
        """Take all the memory that will ever be used, and a `context` that launches; raises `OutOfDeviceMemory`.

        ``variants`` are compiled, on all cores, and loaded here: no later launch of them waits for a compiler.
        """
        plan.check(self.budget_bytes)
        self.modules.prepare(variants)
        weights, kv_cache, step_buffers, scratch = (
            self._memory.allocate(name.replace("_", " "), getattr(plan, name))
            for name in ("weights", "kv_cache", "step_buffers", "scratch")
        )
        context = Context(self.gpu, modules=self.modules, stream=self.stream, arena=scratch)
        self.use(context, weights=weights, kv_cache=kv_cache, step_buffers=step_buffers)

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
        self._copy(values.ctypes.data, array.pointer, values.nbytes, runtime.memcpyDeviceToHost)
        self.synchronise()
        return values

    def copy_to_device_async(self, target: DeviceArray, source: NDArray[Any]) -> None:
        """Enqueue a copy of the same size. A pinned source must stay as it is until the copy is done."""
        assert source.flags.c_contiguous and source.nbytes == target.nbytes, f"{source.shape} into {target.shape}"
        self._copy(target.pointer, source.ctypes.data, source.nbytes, runtime.memcpyHostToDevice)

    def copy_to_host_async(self, target: NDArray[Any], source: DeviceArray) -> None:
        """Enqueue a copy of some KB to a `pinned` array of the same size.

        It is there once an event recorded after it has happened.
        """
        copy_to_host(self.context, source, target)

    def _copy(self, target: int, source: int, num_bytes: int, kind: int) -> None:
        if num_bytes:
            with self._named_errors():
                runtime.memcpyAsync(target, source, num_bytes, kind, self.stream.ptr)

    def event(self) -> Event:
        """An event of the device's stream, not yet recorded."""
        return Event(self)

    def synchronise(self) -> None:
        """Wait for all that is enqueued; raises `CudaFailure` if something of it failed."""
        with self._named_errors():
            self.stream.synchronize()

    def capture(self, enqueue: Callable[[], None], name: str) -> Graph:
        """What ``enqueue`` enqueues, as a graph; ``name`` tells which one failed. Its kernels must have run before."""
        num_launches = self.context.num_launches
        with self._named_errors():
            self.stream.begin_capture()
            try:
                enqueue()
            except BaseException:
                self._abandon_capture()
                raise
            return Graph(self, self.stream.end_capture(), name, self.context.num_launches - num_launches)

    def _abandon_capture(self) -> None:
        try:
            self.stream.end_capture()
        except runtime.CUDARuntimeError:
            return  # what broke the capture is raised by the caller

    def memory_bytes(self) -> int:
        """Device memory taken since the device was opened, by whatever the driver counts."""
        return max(0, self._free_at_start - self.free_bytes)

    def verify_residency(self) -> list[str]:
        """A line for each allocation that is not plain memory of this device; none: all is well."""
        with self._named_errors():
            return verify_residency(self._memory.pointers, self.index)

    def close(self) -> None:
        """Wait, then give all memory back."""
        self.synchronise()
        self._memory.close()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turn CuPy's errors into `CudaFailure`, naming the kernel launched last: errors of kernels come late."""
        try:
            yield
        except runtime.CUDARuntimeError as error:
            raise CudaFailure(self.context.last_kernel or "no kernel", str(error)) from None


class Event:
    """A point in the device's stream of work."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._event = cupy.cuda.Event(disable_timing=True)
        self._suspect = ""

    def record(self) -> None:
        """It happens when all that is enqueued so far is done."""
        self._suspect = self._device.context.last_kernel
        self._event.record(self._device.stream)

    def query(self) -> bool:
        """Whether it has happened; raises `CudaFailure` if something before it failed."""
        try:
            status: int = runtime.eventQuery(self._event.ptr)
        except runtime.CUDARuntimeError as error:
            status = error.status
        if status not in (0, _NOT_READY):
            raise CudaFailure(self._suspect, str(runtime.CUDARuntimeError(status)))
        return status == 0

    def synchronise(self, timeout_s: float) -> None:
        """Wait until it has happened; raises `CudaFailure`, also after ``timeout_s``."""
        for _ in range(SPINS):
            if self.query():
                return
        deadline = time.monotonic() + timeout_s
        while not self.query():
            if time.monotonic() > deadline:
                raise CudaFailure(self._suspect, f"not done after {timeout_s:g} s")
            time.sleep(SLEEP_S)


class Graph:
    """Captured launches, replayed at the price of one."""

    def __init__(self, device: CudaDevice, graph: Any, name: str, num_launches: int) -> None:
        self._device = device
        self._graph = graph
        self.name = name
        self.num_launches = num_launches

    def launch(self) -> None:
        """Enqueue them again; raises `CudaFailure`."""
        self._device.context.last_kernel = self.name
        with self._device._named_errors():
            self._graph.launch(self._device.stream)


def _open(index: int) -> dict[str, Any]:
    """Make the GPU the process's; its properties."""
    name = f"cuda:{index}"
    try:
        count = runtime.getDeviceCount()
        if index >= count:
            raise DeviceUnavailable(f"{name}: this machine has {count} CUDA device(s), counted from 0; {USE_CPU}")
        runtime.setDevice(index)
        runtime.free(0)  # creates the context
        properties: dict[str, Any] = runtime.getDeviceProperties(index)
    except runtime.CUDARuntimeError as error:
        raise DeviceUnavailable(
            f"{name}: there is no CUDA device here ({error}); install NVIDIA's driver, {USE_CPU}"
        ) from None
    capability = properties["major"], properties["minor"]
    if capability < OLDEST:
        found, needed = (".".join(map(str, pair)) for pair in (capability, OLDEST))
        raise DeviceUnavailable(f"{name} has compute capability {found}, {needed} or later is needed; {USE_CPU}")
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError:
        raise DeviceUnavailable(f"{name}: the library NVRTC is missing; {INSTALL_CUDA}, {USE_CPU}") from None
    return properties
