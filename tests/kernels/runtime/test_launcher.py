"""kernels.runtime.launcher: the dry context, and launches on a GPU."""

from __future__ import annotations

import time

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.errors import CudaFailure
from kernels.runtime.gpu_spec import H100
from kernels.runtime.launcher import MAX_PREPARED, Context
from kernels.runtime.memory import ALIGNMENT, Arena
from tests.kernels.conftest import Download, Empty, Upload
from tests.kernels.probe import AddParams, RotateParams, SpinParams, add


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


def test_launches_of_ever_new_grids_take_no_ever_growing_memory() -> None:
    context = Context(H100)
    for grid in range(1, 3 * MAX_PREPARED):
        context.launch("norm", "norm_rms", grid, 128, b"", WIDTH=64)
        context.launch("norm", "norm_rms", 1, 128, b"", WIDTH=64)
    assert context.num_launches == 2 * (3 * MAX_PREPARED - 1)
    assert len(context._prepared) == MAX_PREPARED


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


@pytest.mark.gpu
@pytest.mark.parametrize("size", [0, 1, 255, 256, 1_000_003])
def test_launches_follow_each_other(
    size: int, device: CudaDevice, probes: Context, upload: Upload, download: Download
) -> None:
    values = np.random.default_rng(size).random(size, np.float32)
    array = upload(values)
    expected = values
    for amount in (1.0, 2.0, 3.0, 4.0):
        add(probes, array, amount)
        expected = expected * np.float32(2) + np.float32(amount)
    np.testing.assert_array_equal(download(array), expected)
    assert probes.num_launches == (4 if size else 0)


@pytest.mark.gpu
@pytest.mark.parametrize("shared_bytes", [4096, 48 * 1024, 96 * 1024])
def test_shared_memory_beyond_48_kb_and_variants(
    shared_bytes: int, probes: Context, empty: Empty, download: Download
) -> None:
    for shift in (1, 5):
        out = empty((1024,), np.int32)
        params = RotateParams(out=out.pointer, shared_words=shared_bytes // 4, pad=0)
        probes.launch("probe", "probe_rotate", 1, 1024, params, shared_bytes=shared_bytes, SHIFT=shift)
        np.testing.assert_array_equal(download(out), (np.arange(1024) + shift) % 1024)


@pytest.mark.gpu
def test_wrong_launches_are_refused_by_name(probes: Context, empty: Empty, download: Download) -> None:
    out = empty((32,), np.int32)
    with pytest.raises(CudaFailure, match="probe_rotate: its parameters are 16 bytes, but 8 were given"):
        probes.launch("probe", "probe_rotate", 1, 32, SpinParams(nanoseconds=0), SHIFT=1)
    with pytest.raises(CudaFailure, match=r"probe_rotate: .* bytes of shared memory"):
        probes.launch(
            "probe", "probe_rotate", 1, 32, RotateParams(out=0, shared_words=0, pad=0), shared_bytes=1 << 20, SHIFT=1
        )
    with pytest.raises(CudaFailure, match="probe_missing: CUDA_ERROR_NOT_FOUND"):
        probes.launch("probe", "probe_missing", 1, 32, b"", SHIFT=1)
    probes.launch(
        "probe", "probe_rotate", 1, 32, RotateParams(out=out.pointer, shared_words=32, pad=0), shared_bytes=128, SHIFT=1
    )
    assert download(out)[0] == 1  # the context lives on


@pytest.mark.gpu
def test_a_launch_costs_little(device: CudaDevice, probes: Context, upload: Upload) -> None:
    array = upload(np.zeros(256, np.float32))
    params = AddParams(values=array.pointer, size=array.size, amount=1.0)
    best = 1e9
    for _ in range(5):
        add(probes, array, 1.0)
        device.synchronise()
        start = time.perf_counter()
        for _ in range(500):  # fewer than the driver's queue holds
            probes.launch("probe", "probe_add", 1, 256, params, SHIFT=1)
        best = min(best, (time.perf_counter() - start) / 500)
        device.synchronise()
    print(f"a launch costs {best * 1e6:.2f} us")
    assert best < 20e-6
