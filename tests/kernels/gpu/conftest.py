"""One GPU for all tests of the folder; what a test is given is full of NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from kernels.array import Array
from kernels.device import open_device
from kernels.errors import CudaFailure
from kernels.launch import Context
from kernels.loader import Compiler, Loader
from kernels.memory import Arena, MemoryPlan

PLAN = MemoryPlan(
    weights=4 << 30,  # what tests upload
    kv_cache=0,
    scratch=2 << 30,
    step_buffers=0,
    graphs=256 << 20,
    cuda_context=256 << 20,
)
POISON = 0xFF  # a byte; NaN in every float type, -1 in every integer
POISONED_BYTES = 256 << 20  # of each arena, before each test

Upload = Callable[[NDArray[Any]], Array]
Empty = Callable[[tuple[int, ...], DTypeLike], Array]
Download = Callable[[Array], NDArray[Any]]


@pytest.fixture(scope="session")
def gpu() -> Iterator[Any]:
    """The `CudaDevice`, with memory; most tests want `device`."""
    device: Any = open_device("cuda:0")
    device.allocate(PLAN)
    yield device


_broken_by: list[str] = []


@pytest.fixture
def device(gpu: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The device with all memory free and poisoned. After a failed kernel nothing works: others are skipped."""
    if _broken_by:
        pytest.skip(f"the device's context is broken since {_broken_by[0]}")
    from cupy.cuda import runtime

    gpu.context.begin_step()
    gpu.weights.reset()
    for arena in (gpu.weights, gpu.context._arena):
        runtime.memsetAsync(arena.pointer, POISON, POISONED_BYTES, gpu.stream.ptr)
    yield gpu
    try:
        gpu.synchronise()
    except CudaFailure as failure:
        _broken_by.append(request.node.name)
        pytest.fail(f"a kernel failed: {failure}")


@pytest.fixture
def context(device: Any) -> Context:
    """Where ops launch, with 2 GiB of scratch memory."""
    context: Context = device.context
    return context


@pytest.fixture
def upload(device: Any) -> Upload:
    """Host array -> its copy on the device."""

    def upload(values: NDArray[Any]) -> Array:
        array: Array = device.upload(device.weights, values)
        return array

    return upload


@pytest.fixture
def empty(device: Any) -> Empty:
    """(shape, dtype) -> a device array full of NaN (floats) or -1 (integers)."""

    def empty(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        poison = np.full(math.prod(shape) * np.dtype(dtype).itemsize, POISON, np.uint8)
        array: Array = device.upload(device.weights, poison.view(dtype).reshape(shape))
        return array

    return empty


@pytest.fixture
def download(device: Any) -> Download:
    """Device array -> its copy on the host, when all that is enqueued is done."""
    download: Download = device.download
    return download


@pytest.fixture
def probes(device: Any) -> Context:
    """A context whose kernels are those of probe.cu, with 64 MiB of scratch memory."""
    compiler = Compiler(device.chip.arch, sources=Path(__file__).parent)
    scratch = device.weights.allocate((64 << 20,), np.uint8)
    return Context(
        device.chip, loader=Loader(compiler), stream=device.stream, arena=Arena(scratch.pointer, scratch.nbytes)
    )
