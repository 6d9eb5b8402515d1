"""What a worker does with a GPU's memory, on a real one, with the model that ships."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tasks.demo
from kernels.devices.cuda import CudaDevice
from kernels.devices.open import open_device
from worker.commands.logits import compute_logits, run_dry
from worker.contract import Add, Sampling
from worker.engine.engine import Engine
from worker.load import load_engine, open_configured_device
from worker.memory_plan import plan_memory, reserve_for
from worker.model.gguf import open_gguf
from worker.model.registry import load_model
from worker.settings import Settings

CACHE_BYTES = 1 << 30
MODEL = Path(tasks.demo.__file__).parent / "haiku-q4_k_m.gguf"
SETTINGS = Settings(
    model=str(MODEL),
    device="cuda:0",
    vram_bytes=4 << 30,
    kv_cache_bytes=CACHE_BYTES,
    max_sequences=16,
    step_tokens=1024,
)

pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    device = open_configured_device(SETTINGS)
    assert isinstance(device, CudaDevice)
    yield device
    device.close()


@pytest.fixture
def engine(device: CudaDevice) -> Engine:
    return load_engine(open_gguf(MODEL), device, SETTINGS, lambda _done, _total: None)


def generate(engine: Engine, num_requests: int, num_tokens: int = 24) -> dict[str, list[int]]:
    ids: dict[str, list[int]] = {}
    for number in range(num_requests):
        engine.add(Add(f"r{number}", (1, 2, 3 + number), Sampling(max_tokens=num_tokens, temperature=0.0)))
    while engine.has_work:
        for output in engine.step():
            assert output.finish_reason != "error", output
            ids.setdefault(output.request_id, []).extend(output.ids)
    return ids


def test_memory_in_use_is_what_the_plan_says_and_does_not_grow(device: CudaDevice, engine: Engine) -> None:
    memory = plan_memory(open_gguf(MODEL), device, SETTINGS).memory
    at_start = device.memory_bytes()
    generate(engine, 40)
    in_use = device.memory_bytes()
    assert in_use == at_start
    # Graphs are planned for all sizes of steps, and captured when one comes again; the driver may need less than that.
    least = memory.total_bytes - memory.graphs - memory.cuda_context
    assert least <= in_use <= memory.total_bytes, memory.table()


def test_every_buffer_is_plain_memory_of_the_device(device: CudaDevice, engine: Engine) -> None:
    assert device.verify_residency() == []


def test_the_same_requests_give_the_same_ids_together_and_alone(engine: Engine) -> None:
    together = generate(engine, 16)
    assert generate(engine, 16) == together
    assert generate(engine, 1)["r0"] == together["r0"]


def test_logits_are_those_of_the_cpu(device: CudaDevice) -> None:
    gguf = open_gguf(MODEL)
    ids = np.random.default_rng(0).integers(0, 2048, 700).tolist()
    reserve_for(gguf, device, lambda model: run_dry(model, {len(ids)}))
    found = compute_logits(load_model(gguf, device, lambda _done, _total: None), ids)
    expected = compute_logits(load_model(gguf, open_device("cpu"), lambda _done, _total: None), ids)
    error = np.abs(found - expected)
    worst = np.unravel_index(error.argmax(), error.shape)
    assert error.max() < 0.1, f"{error.max()} at {worst}, mean {error.mean()}"
    top_two = np.sort(expected, axis=1)[:, -2:]
    is_clear = top_two[:, 1] - top_two[:, 0] > 0.1
    assert (found.argmax(1) == expected.argmax(1))[is_clear].all()


def test_a_model_that_does_not_fit_is_said_in_one_line_with_exit_code_1() -> None:
    command = [sys.executable, "-m", "worker", "bench", "engine", str(MODEL), "--concurrency=1"]
    environment = os.environ | {"ORCD_DEVICE": "cuda:0", "ORCD_VRAM_BYTES": str(50 << 20)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("orcd: INSUFFICIENT_VRAM: ")
    assert f"{50 << 20} are available" in done.stderr
    assert done.stderr.count("\n") == 1
