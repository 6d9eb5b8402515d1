"""The engine ahead of what it knows: the same tokens, each once, as when it waits for every one."""

import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcd.errors import CudaError
from tests.worker.engine.bracket_constraint import BracketConstraint
from tests.worker.engine.context_model import Config, ContextModel
from tests.worker.engine.cuda.late_device import LateModel
from tests.worker.engine.generation import SAMPLINGS, RandomTraffic, engine, finish, generate, ids_of, prompt, traffic
from worker.contract import Abort, Add, Choice, Sampling, TokenOutput
from worker.engine.engine import Engine

pytestmark = pytest.mark.usefixtures("no_wait_is_long")


@pytest.fixture(scope="module", autouse=True)
def any_prefix_is_awaited() -> Iterator[None]:
    """However short, so that many requests of most tests wait for another one's."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("worker.engine.cache.block_tables.LEAST_AWAITED_TOKENS", 1)
        yield


def late_engine(**options: object) -> Engine:
    return engine(LateModel(), **options)


@pytest.fixture(scope="module")
def expected() -> dict[tuple[str, int], tuple]:
    return approximately(generate(traffic()))


def approximately(results: dict[tuple[str, int], tuple]) -> dict[tuple[str, int], tuple]:
    """The same with log probabilities rounded: two ways of computing them differ in the last bits."""

    def rounded(logprobs):
        return logprobs and [
            (round(each.logprob, 3), each.top_ids, [round(value, 3) for value in each.top_logprobs])
            for each in logprobs
        ]

    return {
        key: (ids, reason, [rounded(each) for each in logprobs]) for key, (ids, reason, logprobs) in results.items()
    }


@pytest.mark.parametrize(
    "options", [{}, {"step_tokens": 5}, {"cache_tokens": 56}, {"max_sequences": 3}, {"prefix_cache": False}]
)
def test_ids_are_those_of_the_engine_that_waits(expected, options):
    machine = late_engine(**options)
    assert approximately(generate(traffic(), machine)) == expected
    assert approximately(generate(traffic(), machine)) == expected
    if "cache_tokens" in options:
        assert machine.stats(memory_bytes=0).preemptions > 0


@pytest.mark.parametrize(("long_wait_s", "many", "num_ahead"), [(math.inf, 2, 2), (math.inf, 1, 3), (0, 2, 1)])
def test_the_next_steps_are_launched_before_the_last_one_is_known(monkeypatch, long_wait_s, many, num_ahead):
    monkeypatch.setattr("worker.engine.cuda.runner.LONG_WAIT_S", long_wait_s)
    monkeypatch.setattr("worker.engine.cuda.runner.MANY", many)
    machine = late_engine()
    machine.add(Add("r", (1, 2), Sampling(max_tokens=9, temperature=0.0)))
    machine.step()
    for num_left in range(7, 0, -1):
        machine.step()
        assert len(machine._in_flight) == min(num_ahead, num_left)
    machine.step()
    assert not machine.has_work, "a step was launched past the last token"


def test_what_needs_the_host_between_tokens_waits_for_it_and_delays_nobody_else():
    machine = late_engine()
    machine.add(Add("free", (1, 2), Sampling(max_tokens=20, temperature=0.0)))
    machine.add(Add("bound", (3, 4), Sampling(max_tokens=20, temperature=0.0)), BracketConstraint(30))
    counts: dict[str, int] = defaultdict(int)
    while machine.has_work and counts["free"] < 20:
        for output in machine.step():
            counts[output.request_id] += len(output.ids)
    assert 8 <= counts["bound"] <= 12


@pytest.mark.parametrize(
    "wishes",
    [
        {"repetition_penalty": 1.2},
        {"presence_penalty": 0.5, "frequency_penalty": 0.1},
        {"logit_bias": {3: 1.0}},
        {"bad_words": ((3,), (4,))},
        {"logprobs": 5},
        {"stop_token_ids": (9,), "min_tokens": 20},
    ],
)
def test_steps_run_ahead_whatever_is_done_to_logits_on_the_device(wishes: dict[str, object]):
    machine = late_engine()
    machine.add(Add("r", (1, 2), Sampling(**{"max_tokens": 20, "temperature": 0.0, **wishes})))
    for _ in range(5):
        machine.step()
        assert len(machine._in_flight) == 2


def test_penalties_of_a_sequence_that_other_steps_draw_for_meanwhile_count_each_token_once():
    wishes = {"repetition_penalty": 1.6, "frequency_penalty": 0.7, "presence_penalty": -0.3}
    adds = [Add(f"r{n}", prompt(n, 2 + 9 * n), Sampling(max_tokens=30, seed=n, **wishes)) for n in range(6)]
    expected = generate(adds, engine(max_sequences=1))
    for options in ({}, {"step_tokens": 5}, {"cache_tokens": 92}, {"max_sequences": 2}):
        assert generate(adds, late_engine(**options)) == expected


def test_a_step_that_hangs_is_an_error_of_its_kernel_before_the_engine_is_taken_for_hung():
    model = LateModel()
    machine = engine(model, engine_step_timeout_s=100)
    machine.add(Add("r", (1, 2), Sampling(max_tokens=9, temperature=0.0)))
    machine.step()
    model.device.hangs = True
    with pytest.raises(CudaError, match="late_kernel: not done after 80 s"):
        machine.step()


def test_a_sequence_that_outgrows_the_models_limit_is_computed_anew():
    adds = traffic()
    expected = approximately(generate(adds, engine(ContextModel(recompute_at=20))))
    for options in ({}, {"step_tokens": 5}, {"cache_tokens": 56}):
        machine = engine(LateModel(ContextModel(recompute_at=20)), **options)
        assert approximately(generate(adds, machine)) == expected


@pytest.mark.parametrize("num_prompt", [16, 17, 18, 19, 20])
def test_a_sequence_outgrows_the_models_limit_while_several_of_its_steps_are_in_flight(num_prompt):
    add = Add("a", prompt(1, num_prompt), Sampling(max_tokens=12, temperature=0.0))
    expected = generate([add], engine(ContextModel(recompute_at=20)))
    assert generate([add], engine(LateModel(ContextModel(recompute_at=20)))) == expected


def test_a_request_with_non_finite_logits_fails_alone():
    good = Add("good", (1, 2), SAMPLINGS[1])
    expected = generate([good])["good", 0]
    bad = Add("bad", (3,), Sampling(max_tokens=30, temperature=1.0))
    poison_id = generate([bad])["bad", 0][0][2]
    if poison_id in expected[0]:
        pytest.skip("the good request draws the same id")
    results = generate([good, bad], engine(LateModel(ContextModel(poison_id=poison_id))))
    assert results["good", 0] == expected
    assert results["bad", 0][1] == "error"


def test_aborting_while_a_step_is_in_flight_ends_it_without_another_token():
    machine = late_engine()
    machine.add(Add("r", (1, 2, 3), SAMPLINGS[0], (Choice(0), Choice(1))))
    machine.step()
    machine.step()
    machine.abort(Abort("r"))
    outputs = machine.step()
    assert [(output.ids, output.finish_reason) for output in outputs] == [((), "abort"), ((), "abort")]
    assert finish(machine) == {}
    assert machine.stats(memory_bytes=0).kv_blocks_used == 0


def test_a_steady_batch_sends_the_device_nothing_but_new_blocks():
    machine = late_engine(max_sequences=4, step_tokens=64)
    device = machine._runner._model.device
    for number in range(3):
        machine.add(Add(f"r{number}", prompt(number, 5), Sampling(max_tokens=40, temperature=0.0)))
    for _ in range(4):
        machine.step()
    uploads, allocations = device.num_uploads, device.num_allocations
    for _ in range(16):
        machine.step()
    assert device.num_uploads - uploads == 4  # block_tokens is 4, and all sequences get a block in the same step
    assert device.num_allocations == allocations


def test_rows_move_when_others_leave_and_the_bucket_shrinks():
    lengths = [3, 40, 7, 30, 12, 25, 5, 35, 9, 20]
    adds = [
        Add(f"r{number}", prompt(number, 3 + number), Sampling(max_tokens=length, temperature=0.9, seed=number))
        for number, length in enumerate(lengths)
    ]
    model = ContextModel(Config(vocab_size=32, context_length=96))
    options = {"max_sequences": 10, "cache_tokens": 800, "step_tokens": 100}
    machine = engine(LateModel(model), **options)
    assert generate(adds, machine) == generate(adds, engine(ContextModel(model.config), **options))
    machine._runner._batch_slots.check_invariants()


@settings(max_examples=30)
@given(
    step_tokens=st.integers(1, 20),
    cache_tokens=st.integers(56, 120),
    max_sequences=st.integers(1, 8),
    order=st.permutations(range(7)),
    seed=st.integers(0, 5),
)
def test_no_schedule_changes_what_a_request_says(expected, step_tokens, cache_tokens, max_sequences, order, seed):
    adds = traffic()
    machine = engine(
        LateModel(seed=seed), step_tokens=step_tokens, cache_tokens=cache_tokens, max_sequences=max_sequences
    )
    assert approximately(generate([adds[i] for i in order], machine)) == expected


class RandomLateTraffic(RandomTraffic):
    """Random adds, aborts and steps, ahead of the draws."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = late_engine(cache_tokens=40, step_tokens=9, max_sequences=3)


TestRandomLateTraffic = RandomLateTraffic.TestCase
TestRandomLateTraffic.settings = settings(max_examples=30, stateful_step_count=25)


def test_a_thousand_random_requests_end_once_each_and_leak_no_block():
    generator = np.random.default_rng(3)
    machine = engine(
        LateModel(ContextModel(Config(vocab_size=64, context_length=64))),
        cache_tokens=160,
        step_tokens=40,
        max_sequences=12,
    )
    outputs: dict[tuple[str, int], list[TokenOutput]] = defaultdict(list)
    adds: dict[str, Add] = {}
    while len(adds) < 1000 or machine.has_work:
        # All that wait are checked every step.
        is_open = len(adds) < 1000 and machine.stats(memory_bytes=0).waiting < 50
        for _ in range(int(generator.integers(0, 4)) if is_open else 0):
            name = f"r{len(adds)}"
            sampling = Sampling(
                max_tokens=int(generator.integers(1, 20)),
                temperature=float(generator.choice([0.0, 1.0])),
                seed=len(adds),
                stop_token_ids=tuple(range(int(generator.integers(0, 6)))),
                min_tokens=int(generator.choice([0, 0, 0, 3])),
                repetition_penalty=float(generator.choice([1.0, 1.0, 1.0, 1.2])),
            )
            tokens = tuple(generator.integers(0, 3, int(generator.integers(1, 30))).tolist())
            choices = tuple(Choice(index) for index in range(int(generator.choice([1, 1, 1, 3]))))
            adds[name] = Add(name, tokens, sampling, choices, int(generator.integers(0, 3)))
            machine.add(adds[name])
        if generator.random() < 0.2:
            machine.abort(Abort(f"r{generator.integers(0, len(adds) + 1)}"))
        for output in machine.step():
            outputs[output.request_id, output.choice].append(output)
        machine.check_invariants()
    assert outputs.keys() == {(add.request_id, choice.index) for add in adds.values() for choice in add.choices}
    for (name, choice), emitted in outputs.items():
        assert [output.finish_reason is None for output in emitted] == [True] * (len(emitted) - 1) + [False]
        if emitted[-1].finish_reason != "abort" and int(name[1:]) % 20 == 0:
            add = adds[name]
            alone = engine(ContextModel(Config(vocab_size=64, context_length=64)))
            single = Add(name, add.prompt_ids, add.sampling, (Choice(choice),))
            assert generate([single], alone)[name, choice][0] == ids_of(emitted)
    assert machine.stats(memory_bytes=0).kv_blocks_used == 0
    assert machine.stats(memory_bytes=0).preemptions > 0
