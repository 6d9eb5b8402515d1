"""kernels.gpu, launch, loader and memory on a GPU."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.array import Array
from kernels.errors import CudaFailure, OutOfDeviceMemory
from kernels.launch import Context
from kernels.memory import DeviceMemory, verify_residency

ADD = struct.Struct("<Qif")
ROTATE = struct.Struct("<Qii")
SPIN = struct.Struct("<Q")


def add(context: Context, values: Array, amount: float) -> None:
    """values = 2 * values + amount: the order of two such steps can be seen."""
    params = ADD.pack(values.pointer, values.size, amount)
    context.launch("probe", "probe_add", -(-values.size // 256), 256, params, SHIFT=1)


def spin(context: Context, seconds: float) -> None:
    context.launch("probe", "probe_spin", 1, 1, SPIN.pack(int(seconds * 1e9)), SHIFT=1)


def test_the_device_knows_itself(device: Any) -> None:
    print(device.name, device.description, device.chip, f"{device.budget_bytes:,} of {device.total_bytes:,} bytes")
    assert device.chip.num_processors > 0 and device.chip.shared_bytes >= 99 * 1024
    assert 0 < device.free_bytes < device.total_bytes and 0 < device.budget_bytes < device.total_bytes
    assert device.memory_bytes() >= 6 << 30


@pytest.mark.parametrize("size", [0, 1, 255, 256, 1_000_003])
def test_launches_follow_each_other(size: int, device: Any, probes: Context, upload: Any, download: Any) -> None:
    values = np.random.default_rng(size).random(size, np.float32)
    array = upload(values)
    expected = values
    for amount in (1.0, 2.0, 3.0, 4.0):
        add(probes, array, amount)
        expected = expected * np.float32(2) + np.float32(amount)
    np.testing.assert_array_equal(download(array), expected)
    assert probes.num_launches == (4 if size else 0)


@pytest.mark.parametrize("shared_bytes", [4096, 48 * 1024, 96 * 1024])
def test_shared_memory_beyond_48_kb_and_variants(shared_bytes: int, probes: Context, empty: Any, download: Any) -> None:
    for shift in (1, 5):
        out = empty((1024,), np.int32)
        params = ROTATE.pack(out.pointer, shared_bytes // 4, 0)
        probes.launch("probe", "probe_rotate", 1, 1024, params, shared_bytes=shared_bytes, SHIFT=shift)
        np.testing.assert_array_equal(download(out), (np.arange(1024) + shift) % 1024)


def test_wrong_launches_are_refused_by_name(probes: Context, empty: Any, download: Any) -> None:
    out = empty((32,), np.int32)
    with pytest.raises(CudaFailure, match="probe_rotate: its parameters are 16 bytes, but 8 were given"):
        probes.launch("probe", "probe_rotate", 1, 32, SPIN.pack(0), SHIFT=1)
    with pytest.raises(CudaFailure, match=r"probe_rotate: .* bytes of shared memory"):
        probes.launch("probe", "probe_rotate", 1, 32, ROTATE.pack(0, 0, 0), shared_bytes=1 << 20, SHIFT=1)
    with pytest.raises(CudaFailure, match="probe_missing: CUDA_ERROR_NOT_FOUND"):
        probes.launch("probe", "probe_missing", 1, 32, b"", SHIFT=1)
    probes.launch("probe", "probe_rotate", 1, 32, ROTATE.pack(out.pointer, 32, 0), shared_bytes=128, SHIFT=1)
    assert download(out)[0] == 1  # the context lives on


def test_a_launch_costs_little(device: Any, probes: Context, upload: Any) -> None:
    array = upload(np.zeros(256, np.float32))
    params = ADD.pack(array.pointer, array.size, 1.0)
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


def test_a_replayed_graph_does_what_the_launches_did(device: Any, probes: Context, upload: Any, download: Any) -> None:
    values = np.random.default_rng(7).random(5000, np.float32)
    eager, replayed = upload(values), upload(values)

    def step(array: Array) -> None:
        for amount in (1.0, 0.5, 0.25):
            add(probes, array, amount)

    step(eager)
    before = probes.num_launches
    graph = device.capture(lambda: step(replayed), "probe step")
    assert probes.num_launches == before + 3
    np.testing.assert_array_equal(download(replayed), values)  # captured, not run
    graph.launch()
    np.testing.assert_array_equal(download(replayed), download(eager))
    step(eager)
    graph.launch()
    np.testing.assert_array_equal(download(replayed), download(eager))
    assert device.context.last_kernel == "probe step"


def test_a_failed_capture_leaves_the_stream_usable(device: Any, probes: Context, upload: Any, download: Any) -> None:
    array = upload(np.zeros(5, np.float32))
    add(probes, array, 1.0)

    def broken() -> None:
        add(probes, array, 1.0)
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        device.capture(broken, "broken")
    np.testing.assert_array_equal(download(array), np.ones(5, np.float32))


def test_events_happen_in_order_and_time_out(device: Any, probes: Context) -> None:
    spin(probes, 1e-6)
    device.synchronise()
    event = device.event()
    spin(probes, 0.1)
    event.record()
    assert not event.query()
    with pytest.raises(CudaFailure, match=r"not done after 0\.01 s"):
        event.synchronise(0.01)
    event.synchronise(5)
    assert event.query()


def test_copies_through_pinned_memory(device: Any, upload: Any, download: Any) -> None:
    values = device.pinned((3, 1000), np.float16)
    values[:] = np.random.default_rng(3).random((3, 1000))
    array = device.weights.allocate((3, 1000), np.float16)
    device.copy_to_device_async(array, values)
    back = device.pinned((3, 1000), np.float16)
    event = device.event()
    device.copy_to_host_async(back, array)
    event.record()
    event.synchronise(5)
    np.testing.assert_array_equal(back, values)
    assert download(upload(np.zeros((0, 3), np.int32))).shape == (0, 3)
    assert device.pinned((0, 3), np.int32).shape == (0, 3)


def test_only_plain_device_memory_is_resident(device: Any) -> None:
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


def test_memory_that_is_not_there_is_refused_and_memory_given_back_is_free(device: Any) -> None:
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


FAULT = """
import struct, sys
from pathlib import Path
import numpy as np
from kernels.device import open_device
from kernels.errors import CudaFailure
from kernels.launch import Context
from kernels.loader import Compiler, Loader
from kernels.memory import DeviceMemory
device = open_device("cuda:0")
loader = Loader(Compiler(device.chip.arch, sources=Path(sys.argv[1])))
device.context = context = Context(device.chip, loader=loader, stream=device.stream)
some = DeviceMemory().allocate("some", 256), np.zeros(1, np.float32)
event = device.event()
context.launch("probe", "probe_add", 1, 256, struct.pack("<Qif", 4096, 256, 1.0), SHIFT=1)
event.record()
for wait in (lambda: event.synchronise(5), device.synchronise, lambda: device.download(device.upload(*some))):
    try:
        wait()
    except CudaFailure as failure:
        print(failure)
"""


def test_an_asynchronous_error_comes_up_with_the_kernels_name_and_stays(device: Any) -> None:
    folder = Path(__file__).parent
    command = [sys.executable, "-c", FAULT, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder.parents[2])
    lines = done.stdout.splitlines()
    assert [line[:36] for line in lines] == ["probe_add: cudaErrorIllegalAddress: "] * 3, done.stdout + done.stderr


def test_preparing_variants_loads_them(probes: Context) -> None:
    loader: Any = probes._loader
    loader.prepare([("probe", {"SHIFT": shift}) for shift in (11, 12, 13)])
    start = time.perf_counter()
    loader.function("probe", "probe_spin", {"SHIFT": 12})
    assert time.perf_counter() - start < 0.01
