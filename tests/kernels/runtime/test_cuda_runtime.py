"""kernels.runtime.cuda_runtime: every failure names its call or the kernel, and streams, events and graphs on a GPU."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.errors import CudaFailure, OutOfDeviceMemory
from kernels.runtime import cuda_runtime
from kernels.runtime.cuda_runtime import Event, Stream
from kernels.runtime.launcher import Context
from tests.kernels.conftest import Download, Empty, Upload
from tests.kernels.probe import add, spin

ILLEGAL_ADDRESS = 700
NOT_READY = 600
PINNED = 1  # cudaMemoryTypeHost


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"error {status}")
        self.status = status


class Runtime:
    """As CuPy calls CUDA, but nothing is called, and all fails with ``status`` unless that is 0."""

    CUDARuntimeError = CUDARuntimeError
    eventBlockingSync, eventDisableTiming = 1, 2  # noqa: N815

    def __init__(self) -> None:
        self.status = 0
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*_: object) -> int:
            self.calls.append(name)
            if self.status and name != "eventQuery":  # which gives its error back
                raise CUDARuntimeError(self.status)
            return self.status

        return call


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """In place of CuPy's."""
    runtime = Runtime()
    monkeypatch.setattr(cuda_runtime, "_library", lambda: runtime)
    return runtime


CALLS = {
    "cudaMemcpyAsync": [
        ("memcpyAsync", lambda stream, _event: stream.copy_to_device(1, 2, 3)),
        ("memcpyAsync", lambda stream, _event: stream.copy_to_host(1, 2, 3)),
    ],
    "cudaMemsetAsync": [("memsetAsync", lambda stream, _event: stream.fill(1, 0, 3))],
    "cudaStreamWaitEvent": [("streamWaitEvent", lambda stream, event: stream.wait_for(event))],
    "cudaStreamSynchronize": [("streamSynchronize", lambda stream, _event: stream.synchronise())],
    "cudaEventRecord": [("eventRecord", lambda _stream, event: event.record())],
}


@pytest.mark.parametrize(("name", "called", "call"), [(name, *case) for name, cases in CALLS.items() for case in cases])
def test_a_failure_names_what_was_enqueued_last_or_else_the_call(
    runtime: Runtime, name: str, called: str, call: Callable[[Stream, Event], None]
) -> None:
    stream = Stream()
    event = Event(stream)
    call(stream, event)
    assert runtime.calls == ["streamCreateWithFlags", "eventCreateWithFlags", called]
    runtime.status = ILLEGAL_ADDRESS
    with pytest.raises(CudaFailure, match=f"^{name}: error 700"):
        call(stream, event)
    stream.last_enqueued = "matmul_gemv"
    with pytest.raises(CudaFailure, match=r"^matmul_gemv: error 700"):
        call(stream, event)


def test_an_event_names_what_was_enqueued_last_before_it(runtime: Runtime) -> None:
    stream = Stream()
    event = Event(stream)
    stream.last_enqueued = "norm_rms"
    event.record()
    stream.last_enqueued = "sampling_draw"
    assert event.query()
    runtime.status = NOT_READY
    assert not event.query()
    with pytest.raises(CudaFailure, match=r"^norm_rms: not done after 0\.001 s"):
        event.synchronise(0.001)
    runtime.status = ILLEGAL_ADDRESS
    for wait in (event.query, lambda: event.synchronise(1), event.wait):
        with pytest.raises(CudaFailure, match=r"^norm_rms: error 700"):
            wait()


def test_a_graph_is_named_when_it_fails_and_when_something_fails_after_it(runtime: Runtime) -> None:
    stream = Stream()
    graph = stream.capture(lambda: None, "decode step")
    graph.launch()
    captured = ["streamBeginCapture", "streamEndCapture", "graphInstantiate", "graphDestroy"]
    assert runtime.calls == ["streamCreateWithFlags", *captured, "graphLaunch"]
    assert stream.last_enqueued == "decode step"
    runtime.status = ILLEGAL_ADDRESS
    with pytest.raises(CudaFailure, match=r"^decode step: error 700"):
        graph.launch()


def test_of_no_bytes_nothing_is_copied(runtime: Runtime) -> None:
    stream = Stream()
    stream.copy_to_device(0, 0, 0)
    stream.copy_to_host(0, 0, 0)
    assert runtime.calls == ["streamCreateWithFlags"]


@pytest.mark.parametrize("status", [0, ILLEGAL_ADDRESS])
def test_what_nobody_has_any_more_is_given_back_also_to_a_device_that_is_lost(runtime: Runtime, status: int) -> None:
    stream = Stream()
    event, graph = Event(stream), stream.capture(lambda: None, "decode step")
    runtime.calls.clear()
    runtime.status = status
    del event, graph
    gc.collect()
    assert sorted(runtime.calls) == ["eventDestroy", "graphExecDestroy"]
    del stream
    gc.collect()
    assert runtime.calls[2:] == ["streamDestroy"]


def test_a_capture_that_fails_ends_and_its_error_is_told(runtime: Runtime) -> None:
    def fail() -> None:
        raise ValueError("of the step")

    stream = Stream()
    with pytest.raises(ValueError, match="of the step"):
        stream.capture(fail, "decode step")
    assert runtime.calls[1:] == ["streamBeginCapture", "streamEndCapture", "graphDestroy"]


def test_of_cupy_only_the_binding_is_imported_and_it_is_the_public_one() -> None:
    """CuPy says nothing of the package that `cupy.cuda.runtime` comes from."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    code = (
        "import sys; from kernels.runtime import cuda_runtime\n"
        "cuda_runtime.import_library(); print('cupy' in sys.modules)\n"
        "from cupy.cuda import runtime; print(cuda_runtime._library().setDevice is runtime.setDevice)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.gpu
def test_pinned_memory_lives_as_long_as_a_view_of_it(device: CudaDevice) -> None:
    view = cuda_runtime.pinned_bytes(1 << 20)[5:10]
    address = view.ctypes.data
    gc.collect()
    assert cuda_runtime.pointer_attributes(address).memory_type == PINNED
    view[:] = 3
    assert view.tolist() == [3] * 5
    del view
    gc.collect()
    assert cuda_runtime.pointer_attributes(address).memory_type != PINNED


@pytest.mark.gpu
def test_failures_of_calls_become_errors_that_name_them(device: CudaDevice) -> None:
    with pytest.raises(OutOfDeviceMemory):
        cuda_runtime.allocate(1 << 50)
    with pytest.raises(CudaFailure, match=r"^cudaSetDevice: cudaErrorInvalidDevice"):
        cuda_runtime.use_device(cuda_runtime.num_devices())
    free_bytes, total_bytes = cuda_runtime.memory_info()
    assert 0 < free_bytes < total_bytes == device.total_bytes


@pytest.mark.gpu
def test_a_capture_that_waits_is_refused_and_leaves_the_stream_usable(device: CudaDevice) -> None:
    stream = Stream()
    stream.last_enqueued = "matmul_gemv"
    with pytest.raises(CudaFailure, match=r"^matmul_gemv: cudaErrorStreamCapture"):
        stream.capture(stream.synchronise, "waits")
    stream.synchronise()


@pytest.mark.gpu
def test_a_stream_waits_for_an_event_of_another_one(
    device: CudaDevice, probes: Context, upload: Upload, download: Download
) -> None:
    array = upload(np.zeros(1000, np.float32))
    other, target = Stream(), np.empty(1000, np.float32)
    spin(probes, 0.05)
    add(probes, array, 3.0)
    event = Event(probes.stream, sleeps=True)
    event.record()
    assert not event.query()
    other.wait_for(event)
    other.copy_to_host(target.ctypes.data, array.pointer, target.nbytes)
    other.synchronise()
    np.testing.assert_array_equal(target, np.full(1000, 3, np.float32))
    event.wait()
    assert event.query()


@pytest.mark.gpu
def test_filled_memory_holds_the_byte_and_nothing_beside_it(
    device: CudaDevice, empty: Empty, download: Download
) -> None:
    array = empty((8,), np.uint8)
    device.stream.fill(array.pointer + 2, 7, 3)
    assert download(array).tolist() == [255, 255, 7, 7, 7, 255, 255, 255]
