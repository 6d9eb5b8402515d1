"""kernels.memory and kernels.array, as far as they need no GPU."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.array import Array
from kernels.errors import OutOfDeviceMemory
from kernels.memory import ALIGNMENT, PAGE_BYTES, Arena, MemoryPlan

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


def test_arrays_are_seen_in_other_ways_but_stay_where_they_are() -> None:
    array = Array(1000, (6, 4), np.dtype(np.float16))
    assert (array.size, array.nbytes) == (24, 48)
    assert array.reshape(3, -1) == Array(1000, (3, 8), np.dtype(np.float16))
    assert array.first(2) == Array(1000, (2, 4), np.dtype(np.float16))
    assert array.rows(2, 6) == Array(1016, (4, 4), np.dtype(np.float16))
    assert array.rows(6, 6).size == 0
    with pytest.raises(AssertionError):
        array.reshape(5, 5)
    with pytest.raises(AssertionError):
        array.first(7)
