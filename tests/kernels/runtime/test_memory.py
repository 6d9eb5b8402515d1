"""kernels.runtime.memory: plans and arenas, and on a GPU what is allocated."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.errors import OutOfDeviceMemory
from kernels.runtime.memory import ALIGNMENT, PAGE_BYTES, Arena, DeviceMemory, MemoryPlan, verify_residency

PLAN = MemoryPlan(weights=10_000_000, kv_cache=1, scratch=PAGE_BYTES, step_buffers=0, graphs=0, cuda_context=0)


def test_a_plan_counts_whole_pages() -> None:
    assert PLAN.total_bytes == (5 + 1 + 1) * PAGE_BYTES
    assert dict(PLAN.lines())["kv cache"] == PAGE_BYTES


def test_a_plan_is_a_table_that_adds_up() -> None:
    rows = [line.rsplit(maxsplit=2) for line in PLAN.table().splitlines()]
    assert [name for name, _, _ in rows] == [name for name, _ in PLAN.lines()] + ["total"]
    assert sum(int(amount) for _, amount, _ in rows[:-1]) == int(rows[-1][1]) == 14


def test_a_plan_that_does_not_fit_says_by_how_much() -> None:
    PLAN.check(PLAN.total_bytes)
    with pytest.raises(OutOfDeviceMemory, match=r"14,680,064 .* 14,680,063") as caught:
        PLAN.check(PLAN.total_bytes - 1)
    assert (caught.value.required_bytes, caught.value.available_bytes) == (PLAN.total_bytes, PLAN.total_bytes - 1)


def test_an_arena_hands_out_aligned_arrays_side_by_side() -> None:
    arena = Arena(ALIGNMENT * 100, 4 * ALIGNMENT)
    arrays = [arena.allocate((3,), np.float32), arena.allocate((257,), np.uint8), arena.allocate((0, 7), np.int32)]
    assert [array.pointer // ALIGNMENT for array in arrays] == [100, 101, 103]
    assert all(array.pointer % ALIGNMENT == 0 for array in arrays)
    arena.allocate((1,), np.uint8)
    with pytest.raises(OutOfDeviceMemory):
        arena.allocate((1,), np.uint8)
    arena.reset()
    assert arena.allocate((3,), np.float32) == arrays[0]
    assert arena.high_water_bytes == 4 * ALIGNMENT


@pytest.mark.gpu
def test_only_plain_device_memory_is_resident(device: CudaDevice) -> None:
    from cupy.cuda import runtime

    assert device.verify_residency() == []
    managed, host = runtime.mallocManaged(4096), runtime.hostAlloc(4096, runtime.hostAllocMapped)
    try:
        problems = verify_residency({"a": managed, "b": host, "c": id(device), "d": device.weights.pointer}, 0)
        assert [line[:8] for line in problems] == ["a is man", "b is hos", "c is unr"]
        assert verify_residency({"d": device.weights.pointer}, 1) == ["d is on cuda:0"]
    finally:
        runtime.free(managed)
        runtime.freeHost(host)


@pytest.mark.gpu
def test_memory_that_is_not_there_is_refused_and_memory_given_back_is_free(device: CudaDevice) -> None:
    memory = DeviceMemory()
    with pytest.raises(OutOfDeviceMemory) as caught:
        memory.allocate("too much", device.total_bytes * 2)
    assert caught.value.required_bytes >= device.total_bytes * 2 > caught.value.available_bytes > 0
    before = device.memory_bytes()
    memory.allocate("some", 256 << 20)
    assert device.memory_bytes() >= before + (256 << 20)
    memory.close()
    assert device.memory_bytes() == before
    device.synchronise()  # no error is left behind
