"""Kernel launches and step-local memory: what every CUDA op is given first."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from numpy.typing import DTypeLike

from kernels.errors import CudaFailure
from kernels.runtime import driver
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_runtime import Stream
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.driver import FunctionHandle, LaunchConfig
from kernels.runtime.gpu_spec import GpuSpec
from kernels.runtime.memory import Arena
from kernels.runtime.module_cache import Function, ModuleCache

Dimensions = int | tuple[int, ...]
"""x, or (x, y), or (x, y, z)."""

P = ParamSpec("P")
R = TypeVar("R")

_Prepared = tuple[LaunchConfig, FunctionHandle] | tuple[()]
"""What the driver is given for every launch of a kind; nothing in a dry run."""

_MAX_GRID = (2**31 - 1, 65535, 65535)
_MAX_BLOCK = (1024, 1024, 64)
_MAX_THREADS = 1024
_MAX_PARAMS_BYTES = 4096
MAX_PREPARED = 4096
"""Kinds of launch that are kept prepared. A model has some hundred; mixed steps have ever new grids."""


class Context:
    """Where ops launch: one stream of one device, and an arena for what lives no longer than a step.

    Without ``modules`` it is dry and needs no ``stream``: the same Python runs on no device, launches are checked and
    counted, and arrays have the pointer 0. So a dry run of the largest step tells how much scratch memory it needs
    (`high_water_bytes`) and which kernels (`variants`).
    """

    def __init__(
        self,
        gpu: GpuSpec,
        *,
        modules: ModuleCache | None = None,
        stream: Stream | None = None,
        arena: Arena | None = None,
    ) -> None:
        self.gpu = gpu
        self.num_launches = 0
        self.last_enqueued = ""  # the name of a kernel, in a dry run too
        self.variants: dict[tuple[object, ...], Variant] = {}
        self._modules = modules
        self._arena = Arena(0, None) if arena is None else arena
        self._prepared: dict[tuple[object, ...], _Prepared | None] = {}
        self._params = ctypes.create_string_buffer(_MAX_PARAMS_BYTES)
        self._params_address = ctypes.addressof(self._params)
        self._params_array = (ctypes.c_void_p * 1)(self._params_address)
        self._params_array_address = ctypes.addressof(self._params_array)
        self._record: LaunchList | None = None  # what takes the launches
        if modules is not None:
            assert stream is not None, "kernels are launched on a stream"
            self.stream = stream
            self._launch, self._success = driver.launch_call()

    @property
    def dry(self) -> bool:
        """Whether nothing is launched."""
        return self._modules is None

    def begin_step(self) -> None:
        """Take back all scratch arrays. What is enqueued may still use them: later launches come after it."""
        self._arena.reset()

    def scratch(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        """An array with arbitrary contents until the next `begin_step`; the same calls give the same addresses."""
        return self._arena.allocate(shape, dtype)

    def mark(self) -> int:
        """How much scratch memory is in use; `release` goes back to it."""
        return self._arena.used_bytes

    def release(self, mark: int) -> None:
        """Take back the scratch arrays made since ``mark``."""
        self._arena.used_bytes = mark

    @property
    def high_water_bytes(self) -> int:
        """The most scratch memory that any step has used."""
        return self._arena.high_water_bytes

    def launch(
        self,
        source: str,
        kernel: str,
        grid: Dimensions,
        block: Dimensions,
        params: bytes,
        *,
        shared_bytes: int = 0,
        **defines: int | str,
    ) -> None:
        """Enqueue ``kernel`` of ``source``.cu, compiled with ``defines``; raises `CudaFailure` naming it.

        ``params`` are the bytes of its one parameter, a struct. ``shared_bytes`` are dynamic. An empty grid launches
        nothing. On GPUs that can, the kernel may start before the previous one has ended.
        """
        key = (source, kernel, grid, block, shared_bytes, *defines.items())
        try:
            prepared = self._prepared[key]
        except KeyError:
            prepared = self._prepare(source, kernel, grid, block, params, shared_bytes, defines)
            if len(self._prepared) >= MAX_PREPARED:
                del self._prepared[next(iter(self._prepared))]  # the oldest; if it is used again, it is made again
            self._prepared[key] = prepared
        if prepared is None:
            return
        self.num_launches += 1
        self.last_enqueued = kernel
        if not prepared:
            return
        config, handle = prepared
        if self._record is not None:
            self._record.add(kernel, config, handle, params)
            return
        self.stream.last_enqueued = kernel
        ctypes.memmove(self._params_address, params, len(params))
        (error,) = self._launch(config, handle, self._params_array_address, 0)
        if error is not self._success:
            raise CudaFailure(kernel, error.name)

    def record(self, enqueue: Callable[[], None]) -> LaunchList:
        """The launches of ``enqueue``, which does nothing else; they are not done now."""
        assert not self.dry and self._record is None
        self._record = launches = LaunchList(self.stream)
        try:
            enqueue()
        finally:
            self._record = None
        return launches

    def note_variant(self, source: str, defines: Mapping[str, int | str]) -> None:
        """Put it among the ``variants``, as its launch would."""
        self.variants[source, *sorted(defines.items())] = (source, dict(defines))

    def _prepare(
        self,
        source: str,
        kernel: str,
        grid: Dimensions,
        block: Dimensions,
        params: bytes,
        shared_bytes: int,
        defines: Mapping[str, int | str],
    ) -> _Prepared | None:
        """What every such launch takes; None for an empty grid."""
        grid, block = _three(grid), _three(block)
        if 0 in grid:
            return None
        self.note_variant(source, defines)
        function = None if self._modules is None else self._modules.function(source, kernel, defines)
        for problem in _problems(grid, block, shared_bytes, params, self.gpu, function):
            raise CudaFailure(kernel, problem)
        if function is None:
            return ()
        function.allow_shared(shared_bytes)
        config = driver.launch_config(
            grid, block, shared_bytes, self.stream.handle, starts_early=self.gpu.has_dependent_launch
        )
        return config, function.handle


class LaunchList:
    """Launches with all their parameters, to be done again: where they are few, a graph of them begins later."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._launch, self._success = driver.launch_call()
        self._launches: list[tuple[str, LaunchConfig, FunctionHandle, int]] = []
        self._kept: list[object] = []  # what the addresses lead to

    def add(self, kernel: str, config: LaunchConfig, handle: FunctionHandle, params: bytes) -> None:
        """One more, behind the others."""
        copy = ctypes.create_string_buffer(params, len(params))
        array = (ctypes.c_void_p * 1)(ctypes.addressof(copy))
        self._kept += (copy, array)
        self._launches.append((kernel, config, handle, ctypes.addressof(array)))

    def launch(self) -> None:
        """Enqueue them; raises `CudaFailure`."""
        for kernel, config, handle, params in self._launches:
            self._stream.last_enqueued = kernel
            (error,) = self._launch(config, handle, params, 0)
            if error is not self._success:
                raise CudaFailure(kernel, error.name)


def bind(context: Context, function: Callable[Concatenate[Context, P], R]) -> Callable[P, R]:
    """``function`` on ``context``.

    What it took of the scratch memory is free again when it returns nothing: later kernels run after its own, so they
    may use the same memory.
    """

    @wraps(function)
    def op(*arguments: P.args, **options: P.kwargs) -> R:
        mark = context.mark()
        result = function(context, *arguments, **options)
        if result is None:
            context.release(mark)
        return result

    return op


def _three(dimensions: Dimensions) -> tuple[int, int, int]:
    x, y, z = (*((dimensions,) if isinstance(dimensions, int) else dimensions), 1, 1)[:3]
    return x, y, z


def _problems(
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    shared_bytes: int,
    params: bytes,
    gpu: GpuSpec,
    function: Function | None,
) -> Iterator[str]:
    """Why a launch cannot work."""
    if not all(0 < length <= limit for length, limit in zip(grid, _MAX_GRID, strict=True)):
        yield f"the grid {grid} is beyond {_MAX_GRID}"
    max_threads = function.max_threads if function else _MAX_THREADS
    num_threads = block[0] * block[1] * block[2]
    if not all(0 < length <= limit for length, limit in zip(block, _MAX_BLOCK, strict=True)):
        yield f"the block {block} is beyond {_MAX_BLOCK}"
    if num_threads > max_threads:
        yield f"a block of {num_threads} threads is more than the {max_threads} that its registers allow"
    shared_bytes += function.static_shared_bytes if function else 0
    if shared_bytes > gpu.shared_bytes:
        yield f"{shared_bytes:,} bytes of shared memory are more than a block's {gpu.shared_bytes:,}"
    if len(params) > _MAX_PARAMS_BYTES:
        yield f"{len(params)} bytes of parameters are more than {_MAX_PARAMS_BYTES}"
    if function and function.params_bytes not in (None, len(params)):
        yield f"its parameters are {function.params_bytes} bytes, but {len(params)} were given"
