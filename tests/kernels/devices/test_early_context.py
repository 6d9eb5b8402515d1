import ctypes
import subprocess
import sys
import threading

import pytest

from kernels.devices.early_context import begin_context

ACTIVE = """
import ctypes, threading
from kernels.devices.early_context import begin_context
begin_context("cuda:0")
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join()
flags, active = ctypes.c_uint(), ctypes.c_int()
assert ctypes.CDLL("libcuda.so.1").cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(active)) == 0
from kernels.devices.open import open_device
device = open_device("cuda:0")
print(active.value, device.name)
"""


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:x", ""])
def test_a_device_that_is_no_gpu_begins_nothing(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "Thread", None)
    begin_context(device)


def test_a_machine_without_a_driver_is_left_to_whoever_opens_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def missing(name: str) -> ctypes.CDLL:
        asked.append(name)
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    before = set(threading.enumerate())
    begin_context("cuda:0")
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert asked == ["libcuda.so.1"]


@pytest.mark.gpu
def test_the_context_is_there_before_anything_of_cuda_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", ACTIVE], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["1", "cuda:0"], done.stderr
