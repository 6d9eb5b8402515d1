"""The one binding to CUDA's runtime, through CuPy: devices, memory, streams, events and graphs.

That to the driver and to NVRTC is `driver`; no other module calls them. Failures become `CudaFailure`, which names the
call or the kernel, or `OutOfDeviceMemory`. CuPy is imported by the first call, so that importing this module does not
ask for it: dry runs and tests work without. Of CuPy that is `cupy.cuda.runtime` alone, by the name of the package that
it comes from: to import `cupy` takes a quarter of a second, for arrays that nobody here uses.
"""

from __future__ import annotations

import ctypes
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from types import ModuleType

import msgspec
import numpy as np
from numpy.typing import NDArray

from kernels.errors import CudaFailure, OutOfDeviceMemory

SPINS = 200  # queries of an event before the host sleeps between them
SLEEP_S = 50e-6

_ALLOCATION_FAILED = 2  # cudaErrorMemoryAllocation
_NOT_READY = 600  # cudaErrorNotReady


@cache
def _library() -> ModuleType:
    from cupy_backends.cuda.api import runtime

    module: ModuleType = runtime
    return module


def import_library() -> None:
    """Import CuPy's binding now; raises `ImportError`."""
    _library()


@contextmanager
def _named(what: str) -> Iterator[ModuleType]:
    """CuPy's runtime; its errors become `CudaFailure`, naming ``what``."""
    runtime = _library()
    try:
        yield runtime
    except runtime.CUDARuntimeError as error:
        raise CudaFailure(what, str(error)) from None


# ---- devices


class DeviceProperties(msgspec.Struct, frozen=True):
    """What a GPU is."""

    name: str
    capability: tuple[int, int]  # compute capability
    num_sms: int  # streaming multiprocessors
    shared_bytes: int  # most shared memory of a block, static and dynamic together


def num_devices() -> int:
    """How many GPUs there are; raises `CudaFailure` if there is none, or no driver."""
    with _named("cudaGetDeviceCount") as runtime:
        count: int = runtime.getDeviceCount()
    return count


def use_device(index: int) -> DeviceProperties:
    """Make a GPU the one that this thread works with, and create its context."""
    with _named("cudaSetDevice") as runtime:
        runtime.setDevice(index)
        runtime.free(0)  # creates the context
        properties = runtime.getDeviceProperties(index)
        shared_bytes = runtime.deviceGetAttribute(runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, index)
    return DeviceProperties(
        properties["name"].decode(),
        (properties["major"], properties["minor"]),
        properties["multiProcessorCount"],
        shared_bytes,
    )


def device_of_this_thread() -> Callable[[], None]:
    """What a thread must call to work with the device that this thread works with."""
    with _named("cudaGetDevice") as runtime:
        return partial(runtime.setDevice, runtime.getDevice())


# ---- memory


class PointerAttributes(msgspec.Struct, frozen=True):
    """What memory an address belongs to."""

    memory_type: int  # cudaMemoryType
    device_index: int
    host_pointer: int  # 0 if the host cannot reach it


def memory_info() -> tuple[int, int]:
    """Bytes of the device's memory: (those that are free, all)."""
    with _named("cudaMemGetInfo") as runtime:
        free_bytes, total_bytes = runtime.memGetInfo()
    return free_bytes, total_bytes


def allocate(num_bytes: int) -> int:
    """The address of ``num_bytes`` of plain device memory; raises `OutOfDeviceMemory`."""
    runtime = _library()
    try:
        pointer: int = runtime.malloc(num_bytes)
    except runtime.CUDARuntimeError as error:
        if error.status != _ALLOCATION_FAILED:
            raise CudaFailure("cudaMalloc", str(error)) from None
        raise OutOfDeviceMemory(num_bytes, memory_info()[0]) from None
    return pointer


def free(pointer: int) -> None:
    """Give back what `allocate` gave."""
    with _named("cudaFree") as runtime:
        runtime.free(pointer)


def pinned_bytes(num_bytes: int) -> NDArray[np.uint8]:
    """Page-locked host memory [num_bytes], at least one byte; it lives as long as the array or a view of it."""
    with _named("cudaHostAlloc") as runtime:
        pointer: int = runtime.hostAlloc(num_bytes, runtime.hostAllocDefault)
    memory = (ctypes.c_uint8 * num_bytes).from_address(pointer)
    _release_with(memory, runtime.freeHost, pointer)
    return np.frombuffer(memoryview(memory), np.uint8)


def pointer_attributes(pointer: int) -> PointerAttributes:
    """What ``cudaPointerGetAttributes`` says of an address."""
    with _named("cudaPointerGetAttributes") as runtime:
        found = runtime.pointerGetAttributes(pointer)
    return PointerAttributes(found.type, found.device, found.hostPointer)


def _release_with(owner: object, release: Callable[[int], None], handle: int) -> None:
    """Give back what ``owner`` has of CUDA's once nobody has it; at the end of the process the driver does."""
    weakref.finalize(owner, _release, release, handle).atexit = False


def _release(release: Callable[[int], None], handle: int) -> None:
    with suppress(_library().CUDARuntimeError):  # the device is lost: whoever works with it is told
        release(handle)


# ---- streams, events, graphs: what each step calls has no more Python around the call than it must


class Stream:
    """Work for a device, done in the order in which it was enqueued; it waits for no other stream.

    Kernels fail late, so that the `CudaFailure` of any call names ``last_enqueued``, if known: the kernel or graph that
    most likely failed.
    """

    def __init__(self) -> None:
        self.last_enqueued = ""  # the name of a kernel or graph, set by whoever enqueues it
        with _named("cudaStreamCreate") as self._runtime:
            self.handle: int = self._runtime.streamCreateWithFlags(self._runtime.streamNonBlocking)  # cudaStream_t
        _release_with(self, self._runtime.streamDestroy, self.handle)

    def copy_to_device(self, target: int, source: int, num_bytes: int) -> None:
        """Enqueue a copy from host memory, which must stay as it is until the copy is done if it is pinned."""
        runtime = self._runtime
        if num_bytes:
            try:
                runtime.memcpyAsync(target, source, num_bytes, runtime.memcpyHostToDevice, self.handle)
            except runtime.CUDARuntimeError as error:
                raise CudaFailure(self.last_enqueued or "cudaMemcpyAsync", str(error)) from None

    def copy_to_host(self, target: int, source: int, num_bytes: int) -> None:
        """Enqueue a copy to host memory; it is there after `synchronise`."""
        if num_bytes:
            with _named(self.last_enqueued or "cudaMemcpyAsync") as runtime:
                runtime.memcpyAsync(target, source, num_bytes, runtime.memcpyDeviceToHost, self.handle)

    def fill(self, pointer: int, value: int, num_bytes: int) -> None:
        """Enqueue that each of ``num_bytes`` of device memory becomes ``value``."""
        with _named(self.last_enqueued or "cudaMemsetAsync") as runtime:
            runtime.memsetAsync(pointer, value, num_bytes, self.handle)

    def wait_for(self, event: Event) -> None:
        """Let what is enqueued from now on wait until ``event`` has happened; the host goes on."""
        with _named(self.last_enqueued or "cudaStreamWaitEvent") as runtime:
            runtime.streamWaitEvent(self.handle, event.handle)

    def synchronise(self) -> None:
        """Wait for all that is enqueued; raises `CudaFailure` if something of it failed."""
        with _named(self.last_enqueued or "cudaStreamSynchronize") as runtime:
            runtime.streamSynchronize(self.handle)

    def capture(self, enqueue: Callable[[], None], name: str) -> Graph:
        """What ``enqueue`` enqueues, as a graph; ``name`` tells which one failed. Its kernels must have run before."""
        runtime = self._runtime
        try:
            runtime.streamBeginCapture(self.handle, runtime.streamCaptureModeRelaxed)
            try:
                enqueue()
            except BaseException:
                with suppress(runtime.CUDARuntimeError):  # what broke the capture is raised
                    runtime.graphDestroy(runtime.streamEndCapture(self.handle))
                raise
            captured = runtime.streamEndCapture(self.handle)
            try:
                handle: int = runtime.graphInstantiate(captured)
            finally:
                runtime.graphDestroy(captured)
        except runtime.CUDARuntimeError as error:
            raise CudaFailure(self.last_enqueued or "cudaStreamEndCapture", str(error)) from None
        return Graph(self, handle, name)


class Event:
    """A point in a stream of work; with ``sleeps``, `wait` leaves the processor to others."""

    def __init__(self, stream: Stream, *, sleeps: bool = False) -> None:
        self._stream = stream
        self._last_enqueued = ""
        with _named("cudaEventCreate") as self._runtime:
            flags = self._runtime.eventDisableTiming | (self._runtime.eventBlockingSync if sleeps else 0)
            self.handle: int = self._runtime.eventCreateWithFlags(flags)  # cudaEvent_t
        _release_with(self, self._runtime.eventDestroy, self.handle)

    def record(self) -> None:
        """It happens when all that is enqueued so far is done."""
        stream = self._stream
        self._last_enqueued = stream.last_enqueued
        try:
            self._runtime.eventRecord(self.handle, stream.handle)
        except self._runtime.CUDARuntimeError as error:
            raise CudaFailure(self._last_enqueued or "cudaEventRecord", str(error)) from None

    def query(self) -> bool:
        """Whether it has happened; raises `CudaFailure` if something before it failed."""
        status: int = self._runtime.eventQuery(self.handle)
        if status not in (0, _NOT_READY):
            raise CudaFailure(self._last_enqueued or "cudaEventQuery", str(self._runtime.CUDARuntimeError(status)))
        return status == 0

    def synchronise(self, timeout_s: float) -> None:
        """Wait until it has happened; raises `CudaFailure`, also after ``timeout_s``."""
        for _ in range(SPINS):
            if self.query():
                return
        deadline = time.monotonic() + timeout_s
        while not self.query():
            if time.monotonic() > deadline:
                raise CudaFailure(self._last_enqueued, f"not done after {timeout_s:g} s")
            time.sleep(SLEEP_S)

    def wait(self) -> None:
        """Wait until it has happened, however long that takes: other threads go on meanwhile."""
        with _named(self._last_enqueued or "cudaEventSynchronize") as runtime:
            runtime.eventSynchronize(self.handle)


class Graph:
    """Captured launches, replayed at the price of one."""

    def __init__(self, stream: Stream, handle: int, name: str) -> None:
        """``handle`` is a cudaGraphExec_t."""
        self._stream = stream
        self._launch = partial(stream._runtime.graphLaunch, handle, stream.handle)
        self._name = name
        _release_with(self, stream._runtime.graphExecDestroy, handle)

    def launch(self) -> None:
        """Enqueue them again; raises `CudaFailure`."""
        stream = self._stream
        stream.last_enqueued = self._name
        try:
            self._launch()
        except stream._runtime.CUDARuntimeError as error:
            raise CudaFailure(self._name, str(error)) from None
