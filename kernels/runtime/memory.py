"""Device memory: one plan before anything is allocated, one allocation for each of its lines, none later."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from kernels.errors import OutOfDeviceMemory
from kernels.runtime import cuda_runtime
from kernels.runtime.device_array import DeviceArray

ALIGNMENT = 256  # of every array, in bytes
PAGE_BYTES = 2 * 1024 * 1024  # the driver gives device memory in whole pages


def padded(num_bytes: int, unit: int = ALIGNMENT) -> int:
    """``num_bytes`` up to the next multiple of ``unit``."""
    return -(-num_bytes // unit) * unit


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of device memory by use. The first five are allocated at start; the rest is left to the driver."""

    weights: int
    weight_copies: int = 0  # in float16, of matrices that are multiplied by many tokens
    kv_cache: int
    scratch: int  # activations and workspaces of a step; before the first, what weights are uploaded through
    step_buffers: int  # a step's inputs and the ids it chose
    graphs: int  # what captured graphs take
    cuda_context: int  # the driver's own: code, stacks, printf buffers

    @property
    def total_bytes(self) -> int:
        """Bytes of all uses together."""
        return sum(num_bytes for _, num_bytes in self.lines())

    def lines(self) -> Iterator[tuple[str, int]]:
        """(name, bytes) of every use; bytes in whole pages, as the driver counts them."""
        for name in self.__struct_fields__:
            yield name.replace("_", " "), padded(getattr(self, name), PAGE_BYTES)

    def table(self) -> str:
        """The plan for people: one line a use and one for the total, in MiB."""
        rows = [*self.lines(), ("total", self.total_bytes)]
        return "\n".join(f"{name:14} {num_bytes / 2**20:12,.0f} MiB" for name, num_bytes in rows)

    def check(self, available_bytes: int) -> None:
        """Raises `OutOfDeviceMemory` if the plan needs more than ``available_bytes``."""
        if self.total_bytes > available_bytes:
            raise OutOfDeviceMemory(self.total_bytes, available_bytes)


class Arena:
    """Hands out arrays from one allocation, one after the other, until it is reset.

    With ``num_bytes`` None it has no memory and no end: it only finds out how much would be needed.
    """

    def __init__(self, pointer: int, num_bytes: int | None) -> None:
        assert pointer % ALIGNMENT == 0
        self.pointer = pointer
        self.num_bytes = num_bytes
        self.used_bytes = 0
        self.high_water_bytes = 0

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        """An array with arbitrary contents; raises `OutOfDeviceMemory`. The same calls give the same addresses."""
        dtype = np.dtype(dtype)
        start = self.used_bytes
        end = start + padded(math.prod(shape) * dtype.itemsize)
        if self.num_bytes is not None and end > self.num_bytes:
            raise OutOfDeviceMemory(end, self.num_bytes)
        self.used_bytes = end
        self.high_water_bytes = max(self.high_water_bytes, end)
        return DeviceArray(self.pointer + start if self.num_bytes is not None else 0, shape, dtype)

    def reset(self) -> None:
        """Take everything back: what was handed out is overwritten by what comes next."""
        self.used_bytes = 0


class DeviceMemory:
    """Owns the allocations of a process by name. Plain cudaMalloc: never managed, never mapped from the host."""

    def __init__(self) -> None:
        self._arenas: dict[str, Arena] = {}

    def allocate(self, name: str, num_bytes: int) -> Arena:
        """Memory of its own under ``name``; raises `OutOfDeviceMemory`."""
        assert name not in self._arenas, f"{name} is allocated"
        size = padded(max(num_bytes, 1), PAGE_BYTES)
        arena = self._arenas[name] = Arena(cuda_runtime.allocate(size), size)
        return arena

    def free(self, name: str) -> None:
        """Give one allocation back; nothing enqueued may use it any more."""
        cuda_runtime.free(self._arenas.pop(name).pointer)

    def close(self) -> None:
        """Give all allocations back; nothing enqueued may use them any more."""
        for name in list(self._arenas):
            self.free(name)

    @property
    def pointers(self) -> dict[str, int]:
        """Where each allocation starts."""
        return {name: arena.pointer for name, arena in self._arenas.items()}


def pinned(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array in page-locked host memory: with others the host waits for copies to and from the device."""
    dtype = np.dtype(dtype)
    size = math.prod(shape)
    buffer = cuda_runtime.pinned_bytes(max(size * dtype.itemsize, 1))
    return np.frombuffer(buffer, dtype, size).reshape(shape)


_TYPES = {0: "unregistered memory", 1: "host memory", 2: "device memory", 3: "managed memory"}  # cudaMemoryType
_DEVICE_MEMORY = 2


def verify_residency(pointers: Mapping[str, int], device_index: int) -> list[str]:
    """What of ``pointers`` (name -> address) is not plain memory of the device, one line each; nothing if all is well.

    Asks cudaPointerGetAttributes: the type must be device (neither managed nor host), the device ours, and there must
    be no host address for it.
    """
    problems = []
    for name, pointer in pointers.items():
        found = cuda_runtime.pointer_attributes(pointer)
        if found.memory_type != _DEVICE_MEMORY:
            problems.append(f"{name} is {_TYPES.get(found.memory_type, f'memory of type {found.memory_type}')}")
        elif found.device_index != device_index:
            problems.append(f"{name} is on cuda:{found.device_index}")
        elif found.host_pointer:
            problems.append(f"{name} is mapped into host memory")
    return problems
