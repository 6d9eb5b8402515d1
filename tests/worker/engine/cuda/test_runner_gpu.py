"""The engine on a GPU: graphs, run-ahead and everybody else's company change nothing of what a request says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.devices.dry_run import DryRunDevice
from kernels.devices.open import open_device
from tests.models.files import KIT, NOT_ON_GPU, SMALL
from tests.worker.engine.bracket_constraint import constraint_of
from tests.worker.logprob_records import read
from tests.worker.tiny_model import write_tiny_model
from worker.contract import Abort, Add, Choice, Sampling, TokenOutput
from worker.engine.engine import Engine
from worker.memory_plan import reserve
from worker.model.gguf import open_gguf
from worker.model.registry import assemble_model, load_model, read_model_config
from worker.model.weights import Weights
from worker.settings import Settings

ROOT = Path(__file__).parents[4]
OF_THE_KIT = ("qwen2-untied-q8_0", "llama-q4_k_m", "phi3-longrope-f16", "gpt2-q4_0", "gpt-oss-mxfp4")
MODELS = {
    "tiny": None,
    "haiku": ROOT / "tasks" / "demo" / "haiku-q4_k_m.gguf",
    **{name: path for name, path in SMALL.items() if not name.startswith(NOT_ON_GPU)},
    **{name: path for name, path in KIT.items() if name in OF_THE_KIT},
}
Q8 = ", q8"
CODED = "tiny", "haiku", "gemma2-q8_0", "gemma4-q4_0", "gpt-oss-mxfp4_moe", "phi3-q5_k_m"
MODELS |= {name + Q8: MODELS[name] for name in CODED}
NUM_BLOCKS = 400
SETTINGS = Settings(device="cuda:0", max_sequences=24, step_tokens=256, kv_block_tokens=16, vram_fraction=0.5)

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A model on a device of its own, which has memory for `SETTINGS` and `NUM_BLOCKS`."""
    path = MODELS[request.param] or write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")
    device = open_device("cuda:0", vram_fraction=0.5, cache_type="q8" if request.param.endswith(Q8) else "f16")
    assert isinstance(device, CudaDevice)
    gguf = open_gguf(path)
    planned = DryRunDevice("cuda:0", cache_format=device.cache_format)
    block_bytes = assemble_model(read_model_config(gguf), Weights(gguf, planned), planned).bytes_per_block(16)
    reserve(gguf, device, replace(SETTINGS, model=str(path), kv_cache_bytes=NUM_BLOCKS * block_bytes))
    yield load_model(gguf, device, lambda _done, _total: None)
    device.close()


def engine(model: Any, *, num_blocks: int = NUM_BLOCKS, capture: bool = True, **options: Any) -> Engine:
    """A new engine in the memory of the last one."""
    model.device.kv_cache.reset()
    model.device.step_buffers.reset()
    settings = replace(SETTINGS, kv_cache_bytes=num_blocks * model.bytes_per_block(16), **options)
    return Engine(model, settings, capture=capture)


def traffic(model: Any) -> list[Add]:
    """Prompts of mixed lengths with a common beginning; greedy, sampled, constrained, with all that needs the host."""
    generator = np.random.default_rng(5)
    longest = min(model.config.context_length - 50, 150)
    common = generator.integers(0, model.config.vocab_size, longest).tolist()
    extras: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.2},
        {"temperature": 1.1, "min_p": 0.02},
        {"temperature": 0.0, "logprobs": 3, "frequency_penalty": 0.4},
        {"temperature": 1.0, "logit_bias": {5: 2.0, 7: -100.0}, "min_tokens": 6, "stop_token_ids": tuple(range(30))},
        {"temperature": 0.9, "logit_bias": {3: 100.0}, "bad_words": ((3,), (5,), *((at, at) for at in range(90)))},
    ]
    adds = []
    for number, length in enumerate(np.linspace(1, longest, 14).astype(int)):
        own = generator.integers(0, model.config.vocab_size, 4).tolist()
        sampling = Sampling(max_tokens=20 + number, seed=number, **extras[number % len(extras)])
        adds.append(Add(f"{'rrc'[number % 3]}{number}", (*common[:length], *own), sampling))
    return adds


def generate(adds: list[Add], machine: Engine) -> dict[tuple[str, int], tuple[int, ...]]:
    for add in adds:
        machine.add(add, constraint_of(add))
    ids: dict[tuple[str, int], tuple[int, ...]] = {}
    while machine.has_work:
        for output in machine.step():
            assert output.finish_reason != "error", output.error_message
            key = output.request_id, output.choice
            ids[key] = ids.get(key, ()) + output.ids
        machine.check_invariants()
    return ids


def assert_same(actual: dict, expected: dict) -> None:
    """Equal ids; of those that are not, where they part."""
    assert actual.keys() == expected.keys()
    parted = {}
    for key, ids in expected.items():
        if actual[key] != ids:
            first = next((i for i, pair in enumerate(zip(actual[key], ids, strict=False)) if pair[0] != pair[1]), "end")
            parted[key] = first, len(actual[key]), len(ids)
    assert not parted, f"(first different, lengths): {parted}"


@pytest.fixture(scope="module")
def undisturbed(model: Any) -> dict[tuple[str, int], tuple[int, ...]]:
    """Every request alone, kernel by kernel, nothing cached."""
    machine = engine(model, prefix_cache=False, capture=False, max_sequences=1)
    ids: dict[tuple[str, int], tuple[int, ...]] = {}
    for add in traffic(model):
        ids |= generate([add], machine)
    return ids


def test_two_runs_say_the_same(model: Any, undisturbed: dict):
    machine = engine(model, prefix_cache=False, capture=False, max_sequences=1)
    for add in traffic(model):
        assert_same(generate([add], machine), {(add.request_id, 0): undisturbed[add.request_id, 0]})


def test_graphs_equal_eager(model: Any, undisturbed: dict):
    machine = engine(model, prefix_cache=False, max_sequences=1)
    for add in traffic(model):
        assert_same(generate([add], machine), {(add.request_id, 0): undisturbed[add.request_id, 0]})


@pytest.mark.parametrize("capture", [False, True])
def test_batched_equals_alone(model: Any, undisturbed: dict, capture: bool):
    assert_same(generate(traffic(model), engine(model, prefix_cache=False, capture=capture)), undisturbed)


def test_chunked_prefill_equals_whole(model: Any, undisturbed: dict):
    assert_same(generate(traffic(model), engine(model, step_tokens=27, prefix_cache=False)), undisturbed)


def test_prefix_hit_equals_miss(model: Any, undisturbed: dict):
    machine = engine(model)
    assert_same(generate(traffic(model), machine), undisturbed)
    assert_same(generate(traffic(model), machine), undisturbed)
    assert machine.stats(memory_bytes=0).prefix_hit_tokens > 200


def test_preempted_equals_uninterrupted(model: Any):
    adds = [
        Add(f"r{n}", tuple(range(n, n + 5)), Sampling(max_tokens=60, temperature=0.9 * (n % 2), seed=n))
        for n in range(6)
    ]
    roomy, narrow = generate(adds, engine(model)), engine(model, num_blocks=14)  # each request ends with five
    assert_same(generate(adds, narrow), roomy)
    # A sequence that is computed anew at the longrope limit gives its blocks back there, so that all find room.
    assert narrow.stats(memory_bytes=0).preemptions > 0 or model.recompute_at is not None


@pytest.mark.parametrize("cut", [1, 11])
def test_resumed_equals_uninterrupted(model: Any, undisturbed: dict, cut: int):
    adds = [
        Add(add.request_id, add.prompt_ids, add.sampling, (Choice(0, undisturbed[add.request_id, 0][:cut]),))
        for add in traffic(model)
        if len(undisturbed[add.request_id, 0]) > cut
    ]
    expected = {(add.request_id, 0): undisturbed[add.request_id, 0][cut:] for add in adds}
    assert_same(generate(adds, engine(model)), expected)


NUM_TOP = 3


def logprobs_of(adds: list[Add], machine: Engine) -> dict[str, tuple[tuple[int, ...], list[Any], list[Any] | None]]:
    """The ids of each request, and the log probabilities of these and of its prompt, with `NUM_TOP` others."""
    told: dict[str, tuple[tuple[int, ...], list[Any], list[Any] | None]] = {}
    for add in adds:
        machine.add(add)
    while machine.has_work:
        for output in machine.step():
            assert output.finish_reason != "error", output.error_message
            ids, drawn, prompt = told.get(output.request_id, ((), [], None))
            prompt = prompt if output.prompt_logprobs is None else read(output.prompt_logprobs, NUM_TOP)
            told[output.request_id] = (*ids, *output.ids), [*drawn, *read(output.logprobs, NUM_TOP)], prompt
    return told


def test_log_probabilities_of_a_prompt_are_those_that_its_tokens_were_drawn_with(model: Any):
    """One token at a time, in graphs, they are to the bit what parts of prompts have, in whatever company."""
    if model.recompute_at is not None:
        pytest.skip("a prompt beyond the longrope limit is computed in another way than what is drawn before it")
    starts = [add.prompt_ids for add in traffic(model)]
    drawing = [Add(f"r{n}", start, Sampling(max_tokens=25, seed=n, logprobs=NUM_TOP)) for n, start in enumerate(starts)]
    drawn = logprobs_of(drawing, engine(model, prefix_cache=False))
    asking = [
        Add(f"r{n}", start + drawn[f"r{n}"][0], Sampling(max_tokens=2, prompt_logprobs=NUM_TOP))
        for n, start in enumerate(starts)
    ]
    company = [add for pair in zip(asking, traffic(model), strict=True) for add in pair]
    company = [
        Add(f"other{n}" if n % 2 else add.request_id, add.prompt_ids, add.sampling) for n, add in enumerate(company)
    ]
    machine = engine(model)
    for adds, other in (
        (company, machine),
        (company, machine),
        (asking, engine(model, step_tokens=27, max_sequences=7)),
    ):
        told = logprobs_of(adds, other)
        for add, start in zip(asking, starts, strict=True):
            prompt = told[add.request_id][2]
            assert prompt is not None and len(prompt) == len(add.prompt_ids) - 1
            assert prompt[len(start) - 1 :] == drawn[add.request_id][1]


def test_a_steady_batch_allocates_nothing_and_waits_for_nothing_but_its_events(
    model: Any, monkeypatch: pytest.MonkeyPatch
):
    if model.recompute_at is not None:
        pytest.skip("sequences that are computed anew at the longrope limit are no steady batch")
    machine = engine(model)
    for number in range(9):
        sampling = Sampling(max_tokens=60, temperature=0.5 * (number % 2), seed=number)
        machine.add(Add(f"r{number}", tuple(range(1, 8 + number)), sampling))
    for _ in range(5):
        machine.step()
    from cupy.cuda import runtime

    calls: dict[str, int] = defaultdict(int)

    def counted(name: str) -> Any:
        original = getattr(runtime, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return original(*arguments, **options)

        return call

    names = ["malloc", "hostAlloc", "free", "memcpy", "memcpyAsync", "deviceSynchronize", "streamSynchronize",
             "eventSynchronize"]  # fmt: skip
    for name in names:
        monkeypatch.setattr(runtime, name, counted(name))
    monkeypatch.setattr(model.device, "synchronise", lambda: pytest.fail("the host waited for the device"))
    free_bytes, launches = model.device.free_bytes, model.device.context.num_launches
    for _ in range(40):
        machine.step()
    assert model.device.free_bytes == free_bytes
    assert model.device.context.num_launches == launches + 40, "besides the graphs, only ids are copied to the host"
    assert calls.keys() <= {"memcpyAsync"}
    assert calls["memcpyAsync"] <= 9 * 40 // 16 + 9  # new blocks
    while machine.has_work:
        machine.step()


def test_a_thousand_random_requests_end_once_each_and_leak_no_block(model: Any):
    generator = np.random.default_rng(3)
    machine = engine(model, num_blocks=60)
    vocab_size = model.config.vocab_size
    outputs: dict[tuple[str, int], list[TokenOutput]] = defaultdict(list)
    adds: dict[str, Add] = {}
    while len(adds) < 1000 or machine.has_work:
        for _ in range(int(generator.integers(0, 6)) if len(adds) < 1000 else 0):
            name = f"r{len(adds)}"
            sampling = Sampling(
                max_tokens=int(generator.integers(1, 24)),
                temperature=float(generator.choice([0.0, 1.0])),
                top_p=float(generator.choice([1.0, 0.9])),
                seed=len(adds),
                stop_token_ids=tuple(generator.integers(0, vocab_size, 4).tolist()),
                min_tokens=int(generator.choice([0] * 12 + [3])),
                repetition_penalty=float(generator.choice([1.0] * 12 + [1.2])),
                logprobs=[None, 2][int(generator.random() < 0.05)],
            )
            tokens = tuple(generator.integers(0, 3, int(generator.integers(1, 60))).tolist())
            choices = tuple(Choice(index) for index in range(int(generator.choice([1, 1, 1, 3]))))
            adds[name] = Add(name, tokens, sampling, choices, int(generator.integers(0, 3)))
            machine.add(adds[name])
        if generator.random() < 0.1:
            machine.abort(Abort(f"r{generator.integers(0, len(adds) + 1)}"))
        for output in machine.step():
            assert output.finish_reason != "error", output.error_message
            outputs[output.request_id, output.choice].append(output)
        machine.check_invariants()
    assert outputs.keys() == {(add.request_id, choice.index) for add in adds.values() for choice in add.choices}
    for emitted in outputs.values():
        assert [output.finish_reason is None for output in emitted] == [True] * (len(emitted) - 1) + [False]
    stats = machine.stats(memory_bytes=0)
    assert (stats.kv_blocks_used, stats.running, stats.waiting) == (0, 0, 0)
    sampled = [(key, emitted) for key, emitted in outputs.items() if emitted[-1].finish_reason != "abort"][::40]
    alone = engine(model, capture=False)
    for (name, choice), emitted in sampled:
        single = Add(name, adds[name].prompt_ids, adds[name].sampling, (Choice(choice),))
        expected = tuple(token_id for output in emitted for token_id in output.ids)
        assert_same(generate([single], alone), {(name, choice): expected})
