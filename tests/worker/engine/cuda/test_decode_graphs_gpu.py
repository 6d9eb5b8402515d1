"""Decode steps of few sequences on a GPU: all layers in one kernel, and one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.devices.open import open_device
from tests.worker.model.tiny import write_one_kernel, write_wide
from worker.contract import Add, Sampling
from worker.engine.engine import Engine
from worker.memory_plan import reserve
from worker.model.gguf import open_gguf
from worker.model.registry import Model, load_model
from worker.settings import Settings

pytestmark = pytest.mark.gpu

SETTINGS = Settings(device="cuda:0", max_sequences=8, step_tokens=64, kv_cache_bytes=256 << 20, vram_fraction=0.3)
NUM_REQUESTS, LONGEST_PROMPT, MOST_TOKENS = 1000, 300, 24
KINDS = (
    {"temperature": 0.0, "logprobs": 2},
    {"temperature": 0.9, "top_p": 0.9, "logprobs": 1},
    {"temperature": 0.8, "top_k": 30, "repetition_penalty": 1.2},
    {"temperature": 1.0},
)


@pytest.fixture(params=[write_one_kernel, write_wide])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Model]:
    path = request.param(tmp_path / "tiny.gguf", num_regular=17_000)
    device = open_device("cuda:0", vram_fraction=SETTINGS.vram_fraction)
    assert isinstance(device, CudaDevice)
    gguf = open_gguf(path)
    reserve(gguf, device, replace(SETTINGS, model=str(path)))
    loaded = load_model(gguf, device, lambda _done, _total: None)
    if not loaded.one_kernel_contexts:
        pytest.skip(f"its layers run one by one: {loaded.one_kernel_obstacle}")
    yield loaded
    device.close()


def requests(vocab_size: int) -> Iterator[Add]:
    generator = np.random.default_rng(3)
    for number in range(NUM_REQUESTS):
        length = 1 + min(int(generator.exponential(30)), LONGEST_PROMPT)
        prompt = generator.integers(0, vocab_size, length).tolist()
        sampling = Sampling(
            max_tokens=int(generator.integers(1, MOST_TOKENS)), seed=number, **KINDS[number % len(KINDS)]
        )
        yield Add(str(number), tuple(prompt), sampling)


def answers(model: Model, most_at_once: int) -> dict[str, list[object]]:
    """What all requests get, of which up to so many run at once."""
    device = model.device
    assert isinstance(device, CudaDevice)
    device.kv_cache.reset()
    device.step_buffers.reset()
    machine, generator = Engine(model, SETTINGS), np.random.default_rng(most_at_once)
    used_bytes = device.step_buffers.used_bytes
    waiting, running = list(requests(model.config.vocab_size)), set[str]()
    found: dict[str, list[object]] = {add.request_id: [] for add in waiting}
    while waiting or machine.has_work:
        while waiting and len(running) < generator.integers(1, most_at_once + 1):
            add = waiting.pop()
            running.add(add.request_id)
            machine.add(add, None)
        for output in machine.step():
            assert output.finish_reason != "error", output.error_message
            found[output.request_id] += [output.ids, output.logprobs]
            if output.finish_reason:
                running.remove(output.request_id)
    machine.check_invariants()
    assert device.step_buffers.used_bytes == used_bytes, "a request left something behind"
    return found


def test_a_thousand_requests_get_the_same_in_one_kernel_and_one_by_one(model: Model) -> None:
    one_by_one = answers(
        msgspec.structs.replace(model, one_kernel_contexts=dict.fromkeys(model.one_kernel_contexts, 0)), 1
    )
    for most_at_once in model.one_kernel_contexts:
        in_one = answers(model, most_at_once)
        differ = [name for name, answer in one_by_one.items() if joined(in_one[name]) != joined(answer)]
        assert not differ, f"{len(differ)} of {NUM_REQUESTS} differ, up to {most_at_once} at once: {differ[:10]}"


def joined(answer: list[object]) -> tuple[tuple[int, ...], bytes]:
    """Ids and log probabilities, however many outputs they came in."""
    return sum(answer[::2], ()), b"".join(part or b"" for part in answer[1::2])
