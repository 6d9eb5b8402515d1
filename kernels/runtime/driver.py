"""The one binding to CUDA: every call of the driver, of NVRTC and of the runtime that is made outside of `devices`.

Failures become `CudaFailure` (`CompileFailed`, `OutOfDeviceMemory`). The libraries are imported by the first call, so
that importing this module asks for none: dry runs and tests work without.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from kernels.errors import CompileFailed, CudaFailure, OutOfDeviceMemory

MAP_BYTES = 128
MAP_ALIGNMENT = 64

Handle = Any
"""Of a module, function, launch configuration, stream or event: opaque, kept alive by whoever holds it."""

_ALLOCATION_FAILED = 2  # cudaErrorMemoryAllocation


@cache
def _driver() -> Any:
    from cuda.bindings import driver

    return driver


@cache
def _nvrtc() -> Any:
    from cuda.bindings import nvrtc

    return nvrtc


@cache
def _cupy() -> Any:
    import cupy

    return cupy


def _check(what: str, result: tuple[Any, ...]) -> Any:
    """The value of a driver call (error, value); raises `CudaFailure` naming ``what``."""
    error, *values = result
    if error.value:
        raise CudaFailure(what, error.name)
    return values[0] if values else None


@contextmanager
def _named(what: str) -> Iterator[Any]:
    """CuPy's runtime; its errors become `CudaFailure`, naming ``what``."""
    runtime = _cupy().cuda.runtime
    try:
        yield runtime
    except runtime.CUDARuntimeError as error:
        raise CudaFailure(what, str(error)) from None


# ---- compiling


def nvrtc_version() -> str:
    """NVRTC's, such as "nvrtc 13.0"."""
    _, major, minor = _nvrtc().nvrtcVersion()
    return f"nvrtc {major}.{minor}"


def compile_source(name: str, text: str, options: Sequence[str]) -> tuple[bytes, str]:
    """(cubin, the compiler's log) of the C++ ``text``; raises `CompileFailed`, which ends with the log."""
    nvrtc = _nvrtc()
    success = nvrtc.nvrtcResult.NVRTC_SUCCESS
    done, program = nvrtc.nvrtcCreateProgram(text.encode(), name.encode(), 0, [], [])
    if done != success:
        raise CompileFailed(done.name)
    try:
        (done,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        _, log_bytes = nvrtc.nvrtcGetProgramLogSize(program)
        log = bytearray(log_bytes)
        nvrtc.nvrtcGetProgramLog(program, log)
        messages = log.decode(errors="replace").rstrip("\0\n")
        if done != success:
            raise CompileFailed(f"{done.name}\n{messages}")
        _, image_bytes = nvrtc.nvrtcGetCUBINSize(program)
        image = bytearray(image_bytes)
        nvrtc.nvrtcGetCUBIN(program, image)
        return bytes(image), messages
    finally:
        nvrtc.nvrtcDestroyProgram(program)


# ---- modules and functions


def load_module(what: str, image: bytes) -> Handle:
    """A cubin in the current CUDA context."""
    return _check(what, _driver().cuModuleLoadData(image))


def get_function(module: Handle, kernel: str) -> Handle:
    """``kernel`` of a module."""
    return _check(kernel, _driver().cuModuleGetFunction(module, kernel.encode()))


def function_limits(kernel: str, function: Handle) -> tuple[int, int, int | None]:
    """(bytes of static shared memory, most threads of a block, bytes of its one parameter).

    The last is None where the driver is too old to tell.
    """
    driver = _driver()
    attribute = driver.CUfunction_attribute
    shared_bytes, max_threads = (
        _check(kernel, driver.cuFuncGetAttribute(which, function))
        for which in (
            attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
            attribute.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK,
        )
    )
    done, *where = driver.cuFuncGetParamInfo(function, 0)
    return shared_bytes, max_threads, where[1] if done == driver.CUresult.CUDA_SUCCESS else None


def allow_shared(kernel: str, function: Handle, num_bytes: int) -> None:
    """Make launches with ``num_bytes`` of dynamic shared memory possible."""
    driver = _driver()
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _check(kernel, driver.cuFuncSetAttribute(function, attribute, num_bytes))


# ---- launches


def launch_call() -> tuple[Callable[..., tuple[Any, ...]], Any]:
    """``cuLaunchKernelEx``, and the error that is none: as they are, because every launch pays for what is between."""
    driver = _driver()
    return driver.cuLaunchKernelEx, driver.CUresult.CUDA_SUCCESS


def launch_config(
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    shared_bytes: int,
    stream: int,
    *,
    starts_early: bool,
) -> Handle:
    """What ``cuLaunchKernelEx`` is given; ``starts_early``: the kernel may start before the one ahead has ended."""
    driver = _driver()
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid
    config.blockDimX, config.blockDimY, config.blockDimZ = block
    config.sharedMemBytes = shared_bytes
    config.hStream = driver.CUstream(stream)
    if starts_early:
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        config.attrs = [attribute]
        config.numAttrs = 1
    return config


# ---- tensor maps

# Of the driver's enums.
_FLOAT16 = 6
_SWIZZLE_128_BYTES = 3
_PROMOTE_TO_256_BYTES = 3


def encode_tensor_map(pointer: int, shape: tuple[int, int], box: tuple[int, int]) -> bytes:
    """A CUtensorMap of the float16 array [rows, columns] at ``pointer``; boxes are swizzled in 128 bytes."""
    # Not by cuda.bindings: its CUtensorMap object need not be aligned as the driver demands.
    buffer = ctypes.create_string_buffer(MAP_BYTES + MAP_ALIGNMENT)
    address = -(-ctypes.addressof(buffer) // MAP_ALIGNMENT) * MAP_ALIGNMENT
    (num_rows, num_columns), (box_rows, box_columns) = shape, box
    error = _library().cuTensorMapEncodeTiled(
        ctypes.c_void_p(address),
        ctypes.c_int(_FLOAT16),
        ctypes.c_uint32(2),
        ctypes.c_void_p(pointer),
        (ctypes.c_uint64 * 2)(num_columns, num_rows),
        (ctypes.c_uint64 * 1)(num_columns * 2),
        (ctypes.c_uint32 * 2)(box_columns, box_rows),
        (ctypes.c_uint32 * 2)(1, 1),
        ctypes.c_int(0),  # not interleaved
        ctypes.c_int(_SWIZZLE_128_BYTES),
        ctypes.c_int(_PROMOTE_TO_256_BYTES),
        ctypes.c_int(0),  # zeros outside
    )
    if error:
        raise CudaFailure("cuTensorMapEncodeTiled", f"error {error} for {shape} at {pointer:#x}")
    return ctypes.string_at(address, MAP_BYTES)


@cache
def _library() -> Any:
    return ctypes.CDLL("libcuda.so.1")


# ---- memory


def allocate(num_bytes: int) -> int:
    """The address of ``num_bytes`` of plain device memory; raises `OutOfDeviceMemory`."""
    runtime = _cupy().cuda.runtime
    try:
        pointer: int = runtime.malloc(num_bytes)
    except runtime.CUDARuntimeError as error:
        if error.status != _ALLOCATION_FAILED:
            raise CudaFailure("cudaMalloc", str(error)) from None
        raise OutOfDeviceMemory(num_bytes, runtime.memGetInfo()[0]) from None
    return pointer


def free(pointer: int) -> None:
    """Give back what `allocate` gave."""
    with _named("cudaFree") as runtime:
        runtime.free(pointer)


def pinned_buffer(num_bytes: int) -> Any:
    """Page-locked host memory with Python's buffer protocol; it lives as long as what is made of it."""
    cuda = _cupy().cuda
    return cuda.PinnedMemoryPointer(cuda.PinnedMemory(num_bytes), 0)


def pointer_attributes(pointer: int) -> Any:
    """``cudaPointerGetAttributes``: ``type``, ``device`` and ``hostPointer``."""
    with _named("cudaPointerGetAttributes") as runtime:
        return runtime.pointerGetAttributes(pointer)


def clear_async(pointer: int, num_bytes: int, stream: int) -> None:
    """Enqueue zeros for device memory."""
    with _named("cudaMemsetAsync") as runtime:
        runtime.memsetAsync(pointer, 0, num_bytes, stream)


def copy_to_device_async(target: int, source: int, num_bytes: int, stream: int) -> None:
    """Enqueue a copy from host memory, which stays as it is until then if it is pinned."""
    with _named("cudaMemcpyAsync") as runtime:
        runtime.memcpyAsync(target, source, num_bytes, runtime.memcpyHostToDevice, stream)


def copy_to_host(target: int, source: int, num_bytes: int) -> None:
    """Copy to host memory, when all that is enqueued is done."""
    with _named("cudaMemcpy") as runtime:
        runtime.memcpy(target, source, num_bytes, runtime.memcpyDeviceToHost)


# ---- streams, events, threads


def new_stream() -> Handle:
    """A `cupy.cuda.Stream` that waits for no other."""
    return _cupy().cuda.Stream(non_blocking=True)


def new_event(*, sleeps: bool = False) -> Handle:
    """A `cupy.cuda.Event`; with ``sleeps``, a thread that waits for it leaves the processor to others."""
    return _cupy().cuda.Event(block=sleeps, disable_timing=True)


def device_of_this_thread() -> Callable[[], None]:
    """What a thread must call to work with the device that this thread works with."""
    use: Callable[[], None] = _cupy().cuda.Device().use
    return use
