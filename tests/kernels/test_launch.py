"""kernels.launch without a GPU: the dry context."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.chip import H100, Chip
from kernels.errors import CudaFailure
from kernels.launch import Context
from kernels.memory import ALIGNMENT, Arena


def test_a_dry_run_counts_and_remembers_variants() -> None:
    context = Context(H100)
    assert context.dry
    for grid in (1, (2, 3), (2, 3, 4)):
        context.launch("norm", "norm_rms", grid, 128, b"", WIDTH=64)
    context.launch("norm", "norm_rms", 1, (32, 4), b"", WIDTH=128)
    assert context.num_launches == 4
    assert list(context.variants.values()) == [("norm", {"WIDTH": 64}), ("norm", {"WIDTH": 128})]


@pytest.mark.parametrize("grid", [0, (4, 0), (4, 4, 0)])
def test_an_empty_grid_launches_nothing(grid: int | tuple[int, ...]) -> None:
    context = Context(H100)
    context.launch("norm", "norm_rms", grid, 128, b"")
    assert not context.num_launches and not context.variants


@pytest.mark.parametrize(
    ("grid", "block", "shared_bytes", "problem"),
    [
        ((1, 65536), 32, 0, "grid"),
        (-1, 32, 0, "grid"),
        (1, 0, 0, "block"),
        (1, (1, 1, 65), 0, "block"),
        (1, (512, 4), 0, "2048 threads"),
        (1, 32, 232449, "232,449 bytes of shared memory"),
    ],
)
def test_a_launch_that_cannot_work_is_refused_with_the_kernels_name(
    grid: int | tuple[int, ...], block: int | tuple[int, ...], shared_bytes: int, problem: str
) -> None:
    with pytest.raises(CudaFailure, match=f"norm_rms: .*{problem}"):
        Context(H100).launch("norm", "norm_rms", grid, block, b"", shared_bytes=shared_bytes)


def test_scratch_is_measured_and_taken_back() -> None:
    context = Context(H100)
    first = context.scratch((3, 100), np.float32)
    assert (first.shape, first.dtype, first.pointer) == ((3, 100), np.dtype(np.float32), 0)
    context.scratch((1,), np.float16)
    assert context.high_water_bytes == 1280 + 256
    context.begin_step()
    context.scratch((5,), np.int32)
    assert context.high_water_bytes == 1280 + 256


def test_released_scratch_is_used_again_and_the_most_that_was_used_is_remembered() -> None:
    context = Context(H100, arena=Arena(ALIGNMENT, 8 * ALIGNMENT))
    kept = context.scratch((1,), np.int32)
    mark = context.mark()
    released = [context.scratch((3, 100), np.float32), context.scratch((1,), np.uint8)]
    context.release(mark)
    assert context.scratch((5,), np.int32).pointer == released[0].pointer == kept.pointer + ALIGNMENT
    assert context.high_water_bytes == (1 + 5 + 1) * ALIGNMENT


@pytest.mark.parametrize(("arch", "has"), [("sm_80", False), ("sm_89", False), ("sm_90a", True), ("sm_120", True)])
def test_dependent_launch_came_with_hopper(arch: str, has: bool) -> None:
    assert Chip(arch, 1, 1).has_dependent_launch is has
