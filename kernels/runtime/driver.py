"""The one binding to CUDA's driver and to NVRTC, through cuda.bindings; that to CUDA's runtime is `cuda_runtime`.

No other module calls them. Failures become `CudaFailure`, which names the call or the kernel, or `CompileFailed`. The
libraries are imported by the first call, so that importing this module asks for none: dry runs and tests work without.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any, NewType, Protocol

from kernels.errors import CompileFailed, CudaFailure

MAP_BYTES = 128
MAP_ALIGNMENT = 64

# Objects of cuda.bindings: opaque, kept alive by whoever holds them.
ModuleHandle = NewType("ModuleHandle", object)
FunctionHandle = NewType("FunctionHandle", object)
LaunchConfig = NewType("LaunchConfig", object)


class DriverStatus(Protocol):
    """What a call of the driver says of itself: a member of its enum CUresult."""

    @property
    def name(self) -> str:
        """Such as ``CUDA_ERROR_INVALID_VALUE``."""


LaunchCall = Callable[[LaunchConfig, FunctionHandle, int, int], tuple[DriverStatus]]
"""``cuLaunchKernelEx``: configuration, function, address of the array of parameters, and 0."""


@cache
def _driver() -> ModuleType:
    from cuda.bindings import driver

    module: ModuleType = driver
    return module


@cache
def _nvrtc() -> ModuleType:
    from cuda.bindings import nvrtc

    module: ModuleType = nvrtc
    return module


def import_library() -> None:
    """Import cuda.bindings now; raises `ImportError`, which names what is missing."""
    _driver()
    _nvrtc()


def _check(what: str, result: tuple[Any, ...]) -> Any:
    """The value of a driver call (error, value); raises `CudaFailure` naming ``what``."""
    error, *values = result
    if error.value:
        raise CudaFailure(what, error.name)
    return values[0] if values else None


# ---- compiling


def nvrtc_version() -> str:
    """NVRTC's, such as "nvrtc 13.0"; raises `CudaFailure` if the library is missing."""
    try:
        _, major, minor = _nvrtc().nvrtcVersion()
    except RuntimeError as error:
        raise CudaFailure("nvrtcVersion", str(error)) from None
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


def load_module(what: str, image: bytes) -> ModuleHandle:
    """A cubin in the current CUDA context."""
    module: ModuleHandle = _check(what, _driver().cuModuleLoadData(image))
    return module


def get_function(module: ModuleHandle, kernel: str) -> FunctionHandle:
    """``kernel`` of a module."""
    function: FunctionHandle = _check(kernel, _driver().cuModuleGetFunction(module, kernel.encode()))
    return function


def function_limits(kernel: str, function: FunctionHandle) -> tuple[int, int, int | None]:
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


def allow_shared(kernel: str, function: FunctionHandle, num_bytes: int) -> None:
    """Make launches with ``num_bytes`` of dynamic shared memory possible."""
    driver = _driver()
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _check(kernel, driver.cuFuncSetAttribute(function, attribute, num_bytes))


# ---- launches


def launch_call() -> tuple[LaunchCall, DriverStatus]:
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
) -> LaunchConfig:
    """What ``cuLaunchKernelEx`` is given; ``starts_early``: the kernel may start before the previous one has ended."""
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
    return LaunchConfig(config)


# ---- tensor maps

# Of the driver's enums.
_TYPES = {2: 6, 4: 7}  # float16 and float32
_SWIZZLES = {64: 2, 128: 3}
_PROMOTE_TO_256_BYTES = 3


def encode_tensor_map(
    pointer: int, element_bytes: int, shape: tuple[int, int], row_bytes: int, box: tuple[int, int]
) -> bytes:
    """A CUtensorMap of the array [rows, columns] of floats at ``pointer``; boxes are swizzled in the length of a row.

    ``row_bytes`` from one row to the next.
    """
    # Not by cuda.bindings: its CUtensorMap object need not be aligned as the driver demands.
    buffer = ctypes.create_string_buffer(MAP_BYTES + MAP_ALIGNMENT)
    address = -(-ctypes.addressof(buffer) // MAP_ALIGNMENT) * MAP_ALIGNMENT
    (num_rows, num_columns), (box_rows, box_columns) = shape, box
    error = _library().cuTensorMapEncodeTiled(
        ctypes.c_void_p(address),
        ctypes.c_int(_TYPES[element_bytes]),
        ctypes.c_uint32(2),
        ctypes.c_void_p(pointer),
        (ctypes.c_uint64 * 2)(num_columns, num_rows),
        (ctypes.c_uint64 * 1)(row_bytes),
        (ctypes.c_uint32 * 2)(box_columns, box_rows),
        (ctypes.c_uint32 * 2)(1, 1),
        ctypes.c_int(0),  # not interleaved
        ctypes.c_int(_SWIZZLES[box_columns * element_bytes]),
        ctypes.c_int(_PROMOTE_TO_256_BYTES),
        ctypes.c_int(0),  # zeros outside
    )
    if error:
        raise CudaFailure("cuTensorMapEncodeTiled", f"error {error} for {shape} at {pointer:#x}")
    return ctypes.string_at(address, MAP_BYTES)


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
