"""From settings to an engine, and how what goes wrong on the way is told."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from kernels.devices.cpu import CpuDevice
from kernels.devices.open import open_device
from kernels.errors import CompileFailed, CudaFailure, OutOfDeviceMemory
from orcd.errors import CudaError, InsufficientVram, ModelLoadFailed, OrcdError
from tests.worker.model.tiny import write_tiny
from tests.worker.planned_gpu import PlannedGpu
from worker import load
from worker.contract import Add, Sampling
from worker.load import device_errors, load_engine, open_configured_device
from worker.memory_plan import plan_memory
from worker.model.gguf import GGUFFile, open_gguf
from worker.settings import Settings

SETTINGS = Settings(model="tiny.gguf", max_sequences=8, step_tokens=256, context_length=2048)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    return open_gguf(write_tiny("gpt-oss", tmp_path_factory.mktemp("model") / "tiny.gguf"))


def test_a_model_is_loaded_into_an_engine_that_generates(gguf: GGUFFile) -> None:
    told: list[tuple[int, int]] = []
    settings = replace(SETTINGS, device="cpu", kv_cache_bytes=1 << 20)
    engine = load_engine(gguf, open_configured_device(settings), settings, lambda *progress: told.append(progress))
    assert told == sorted(told)
    num_bytes, total_bytes = told[-1]
    assert num_bytes == total_bytes > 0
    engine.add(Add("r", (1, 2, 3), Sampling(max_tokens=4)))
    num_ids = 0
    while engine.has_work:
        num_ids += sum(len(output.ids) for output in engine.step())
    assert num_ids == 4


def test_a_model_that_does_not_fit_is_refused_with_all_that_helps(gguf: GGUFFile) -> None:
    gpu = PlannedGpu(msgspec.structs.replace(plan_memory(gguf, PlannedGpu(0), SETTINGS).memory, kv_cache=0).total_bytes)
    with pytest.raises(InsufficientVram) as caught:
        load_engine(gguf, gpu, SETTINGS, lambda _done, _total: None)
    required = plan_memory(gguf, gpu, SETTINGS).memory.total_bytes
    for part in (f"{required} bytes", f"{gpu.budget_bytes} are available", "cuda:0", "tiny.gguf"):
        assert part in caught.value.message
    assert gpu.allocated == []


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (
            OutOfDeviceMemory(20, 10),
            InsufficientVram,
            "tiny.gguf needs 20 bytes on cuda:0, and 10 are available; lower",
        ),
        (
            MemoryError("Unable to allocate 8.00 PiB for an array"),
            InsufficientVram,
            "tiny.gguf needs more memory than there is on cuda:0; lower",
        ),
        (CudaFailure("matmul", "CUDA_ERROR_ILLEGAL_ADDRESS"), CudaError, "matmul: CUDA_ERROR_ILLEGAL_ADDRESS"),
        (
            CompileFailed("\nmatmul.cu(3): error: no such type\nmany\nmore\nlines"),
            ModelLoadFailed,
            "cuda:0: a kernel does not compile: matmul.cu(3): error: no such type",
        ),
    ],
)
def test_what_a_device_cannot_do_is_one_line_with_a_code(
    error: Exception, expected: type[OrcdError], message: str
) -> None:
    with pytest.raises(expected) as caught, device_errors(SETTINGS):
        raise error
    assert caught.value.message.startswith(message)
    assert "\n" not in caught.value.message
    assert caught.value.__cause__ is error, "the log has all of it"


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError), device_errors(SETTINGS):
        raise ZeroDivisionError


def test_a_device_that_is_not_there_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ModelLoadFailed, match=r"cuda:77: .*--device cpu"):
        open_configured_device(replace(SETTINGS, device="cuda:77"))


def test_the_device_is_opened_within_the_budget_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def opened(name: str, **budget: object) -> CpuDevice:
        asked.append((name, budget))
        device = open_device("cpu")
        assert isinstance(device, CpuDevice)
        return device

    monkeypatch.setattr(load, "open_device", opened)
    told = {"dequant_cache_bytes": 5, "vram_fraction": 0.25, "vram_bytes": 7}
    open_configured_device(Settings(device="cuda:2", kv_cache_type="q8", **told))
    assert asked == [("cuda:2", {**told, "cache_type": "q8"})]
