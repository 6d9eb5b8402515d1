"""kernels.runtime.cuda_runtime: every failure names its call or the kernel, and streams, events and graphs on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

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


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"error {status}")
        self.status = status


class Runtime:
    """As CuPy calls CUDA, but nothing is called, and all fails with ``status`` unless that is 0."""

    CUDARuntimeError = CUDARuntimeError

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
    graph = SimpleNamespace(launch=lambda _stream: runtime.graphLaunch())
    stream = SimpleNamespace(
        ptr=1, begin_capture=runtime.streamBeginCapture, end_capture=lambda: runtime.streamEndCapture() or graph
    )
    cuda = SimpleNamespace(
        runtime=runtime, Stream=lambda *, non_blocking: stream, Event=lambda **_: SimpleNamespace(ptr=2)
    )
    monkeypatch.setattr(cuda_runtime, "_cuda", lambda: cuda)
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
    assert runtime.calls == [called]
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
    assert runtime.calls == ["streamBeginCapture", "streamEndCapture", "graphLaunch"]
    assert stream.last_enqueued == "decode step"
    runtime.status = ILLEGAL_ADDRESS
    with pytest.raises(CudaFailure, match=r"^decode step: error 700"):
        graph.launch()


def test_of_no_bytes_nothing_is_copied(runtime: Runtime) -> None:
    stream = Stream()
    stream.copy_to_device(0, 0, 0)
    stream.copy_to_host(0, 0, 0)
    assert runtime.calls == []


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
