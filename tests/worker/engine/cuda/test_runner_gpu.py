"""The engine on a GPU: graphs, run-ahead and everybody else's company change nothing of what a request says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.worker.engine.cuda.gpu_engine import MODELS, engine, open_planned, traffic
from tests.worker.engine.test_equivalence import generate
from tests.worker.logprob_records import read
from worker.contract import Abort, Add, Choice, Sampling, TokenOutput
from worker.engine.engine import Engine

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with open_planned(request.param, tmp_path_factory.mktemp("model")) as planned:
        yield planned


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
