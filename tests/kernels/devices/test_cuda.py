"""kernels.devices.cuda: copies, events, graphs, and errors that come late."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.errors import CudaFailure
from kernels.runtime.cuda_runtime import Graph
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context, LaunchList
from tests.kernels.conftest import Download, Upload
from tests.kernels.probe import add, spin

pytestmark = pytest.mark.gpu


def test_the_device_knows_itself(device: CudaDevice) -> None:
    print(device.name, device.description, device.gpu, f"{device.budget_bytes:,} of {device.total_bytes:,} bytes")
    assert device.gpu.num_sms > 0 and device.gpu.shared_bytes >= 99 * 1024
    assert 0 < device.free_bytes < device.total_bytes and 0 < device.budget_bytes < device.total_bytes
    assert device.memory_bytes() >= 6 << 30


@pytest.mark.parametrize("how", ["captured", "recorded"])
def test_launches_that_are_kept_do_each_time_what_they_did(
    device: CudaDevice, probes: Context, upload: Upload, download: Download, how: str
) -> None:
    values = np.random.default_rng(7).random(5000, np.float32)
    eager, again = upload(values), upload(values)

    def step(array: DeviceArray) -> None:
        for amount in (1.0, 0.5, 0.25):
            add(probes, array, amount)

    step(eager)
    before = probes.num_launches
    if how == "captured":
        kept: Graph | LaunchList = device.capture(lambda: step(again), "probe step")
    else:
        kept = probes.record(lambda: step(again))
    assert probes.num_launches == before + 3
    np.testing.assert_array_equal(download(again), values)  # kept, not run
    kept.launch()
    np.testing.assert_array_equal(download(again), download(eager))
    step(eager)
    kept.launch()
    np.testing.assert_array_equal(download(again), download(eager))
    assert how == "recorded" or device.stream.last_enqueued == "probe step"


def test_a_failed_capture_leaves_the_stream_usable(
    device: CudaDevice, probes: Context, upload: Upload, download: Download
) -> None:
    array = upload(np.zeros(5, np.float32))
    add(probes, array, 1.0)

    def broken() -> None:
        add(probes, array, 1.0)
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        device.capture(broken, "broken")
    np.testing.assert_array_equal(download(array), np.ones(5, np.float32))


def test_events_happen_in_order_and_time_out(device: CudaDevice, probes: Context) -> None:
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


def test_copies_through_pinned_memory(device: CudaDevice, upload: Upload, download: Download) -> None:
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
    values[:] += 1
    device.uploader(values.reshape(-1).view(np.uint8))(array.first(2))
    np.testing.assert_array_equal(download(array), [values[0], values[1], back[2]])
    assert download(upload(np.zeros((0, 3), np.int32))).shape == (0, 3)
    assert device.pinned((0, 3), np.int32).shape == (0, 3)


FAULT = """
import struct, sys
from pathlib import Path
import numpy as np
from kernels.devices.open import open_device
from kernels.errors import CudaFailure
from kernels.runtime.cuda_runtime import Graph
from kernels.runtime.launcher import Context, LaunchList
from kernels.runtime.compiler import Compiler
from kernels.runtime.module_cache import ModuleCache
from kernels.runtime.memory import DeviceMemory
device = open_device("cuda:0")
modules = ModuleCache(Compiler(device.gpu.arch, sources=Path(sys.argv[1])))
device.context = context = Context(device.gpu, modules=modules, stream=device.stream)
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


def test_an_asynchronous_error_comes_up_with_the_kernels_name_and_stays(device: CudaDevice) -> None:
    folder = Path(__file__).parents[1]
    command = [sys.executable, "-c", FAULT, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder.parents[1])
    lines = done.stdout.splitlines()
    assert [line[:36] for line in lines] == ["probe_add: cudaErrorIllegalAddress: "] * 3, done.stdout + done.stderr
