"""One GPU for all tests of the folder; what a test is given there is full of NaN."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from kernels.devices.cuda import CudaDevice
from kernels.devices.open import open_device
from kernels.errors import CudaFailure
from kernels.runtime.compiler import Compiler
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context
from kernels.runtime.memory import Arena, MemoryPlan
from kernels.runtime.module_cache import ModuleCache

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

FILL = """#pragma once
#include "part.cuh"
#include "part.cuh"
extern "C" __global__ void fill(float* values) { values[threadIdx.x] = part() + AMOUNT; }
"""

Upload = Callable[[NDArray[Any]], DeviceArray]
Empty = Callable[[tuple[int, ...], DTypeLike], DeviceArray]
Download = Callable[[DeviceArray], NDArray[Any]]


@pytest.hookimpl(tryfirst=True)  # before tests are deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test marked ``sanitize("7-*")`` only the parameter sets whose ids match stay marked.

    None does where the tool that ``SANITIZER`` names is the marker's ``but``. What is marked covers every kernel and
    format, at sizes at which a test may take 20 times as long. A pattern without a match is an error.
    """
    unmatched: dict[tuple[str, str], bool] = {}
    for item in items:
        marker = item.get_closest_marker("sanitize")
        if marker and marker.args and isinstance(item, pytest.Function):
            matches = {pattern: fnmatchcase(item.callspec.id, pattern) for pattern in marker.args}
            for pattern, is_match in matches.items():
                test = item.nodeid.partition("[")[0], pattern
                unmatched[test] = unmatched.get(test, True) and not is_match
            if not any(matches.values()) or marker.kwargs.get("but") == os.environ.get("SANITIZER", ""):
                item.own_markers.remove(marker)
    if not any("::" in argument for argument in config.args):  # where single tests are named, others may have the match
        for (name, pattern), is_unmatched in unmatched.items():
            if is_unmatched:
                raise pytest.UsageError(f"{name}: no parameter set matches sanitize({pattern!r})")


@pytest.fixture(scope="session")
def cuda_device() -> Iterator[CudaDevice]:
    """The `CudaDevice`, with memory; most tests want `device`."""
    device = open_device("cuda:0")
    assert isinstance(device, CudaDevice)
    device.allocate(PLAN)
    yield device


_broken_by: list[str] = []


@pytest.fixture
def device(cuda_device: CudaDevice, request: pytest.FixtureRequest) -> Iterator[CudaDevice]:
    """The device with all memory free and poisoned. After a failed kernel nothing works: others are skipped."""
    if _broken_by:
        pytest.skip(f"the device's context is broken since {_broken_by[0]}")
    cuda_device.context.begin_step()
    cuda_device.weights.reset()
    for arena in (cuda_device.weights, cuda_device.context._arena):
        cuda_device.stream.fill(arena.pointer, POISON, POISONED_BYTES)
    yield cuda_device
    try:
        cuda_device.synchronise()
    except CudaFailure as failure:
        _broken_by.append(request.node.name)
        pytest.fail(f"a kernel failed: {failure}")


@pytest.fixture
def context(device: CudaDevice) -> Context:
    """Where ops launch, with 2 GiB of scratch memory."""
    return device.context


@pytest.fixture
def upload(device: CudaDevice) -> Upload:
    """Host array -> its copy on the device."""

    def upload(values: NDArray[Any]) -> DeviceArray:
        return device.upload(device.weights, values)

    return upload


@pytest.fixture
def empty(device: CudaDevice) -> Empty:
    """(shape, dtype) -> a device array full of NaN (floats) or -1 (integers)."""

    def empty(shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        poison = np.full(math.prod(shape) * np.dtype(dtype).itemsize, POISON, np.uint8)
        return device.upload(device.weights, poison.view(dtype).reshape(shape))

    return empty


@pytest.fixture
def download(device: CudaDevice) -> Download:
    """Device array -> its copy on the host, when all that is enqueued is done."""
    return device.download


@pytest.fixture
def probes(device: CudaDevice) -> Context:
    """A context whose kernels are those of probe.cu, with 128 MiB of scratch memory."""
    compiler = Compiler(device.gpu.arch, sources=Path(__file__).parent)
    scratch = device.weights.allocate((128 << 20,), np.uint8)
    return Context(
        device.gpu, modules=ModuleCache(compiler), stream=device.stream, arena=Arena(scratch.pointer, scratch.nbytes)
    )


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder with fill.cu and what it includes; needs no GPU."""
    folder = tmp_path / "cuda"
    folder.mkdir()
    (folder / "fill.cu").write_text(FILL)
    (folder / "part.cuh").write_text('#pragma once\n#include "deep.cuh"\n__device__ float part() { return deep(); }\n')
    (folder / "deep.cuh").write_text("__device__ float deep() { return 1.0f; }\n")
    return folder
