"""A constraint that needs long for a token holds up its own answer, and no other one; no id depends on how long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle

import pytest

from tests.worker.engine.bracket_constraint import BracketConstraint, FailingConstraint, SlowBatch, slow
from tests.worker.engine.cuda.late_device import LateModel
from tests.worker.engine.generation import engine, finish, ids_of, prompt
from tests.worker.engine.recurrent_model import RecurrentModel
from worker.contract import Abort, Add, Choice, Sampling
from worker.engine.engine import Engine
from worker.engine.logits.late_draws import LateDraws

Results = dict[tuple[str, int], tuple[tuple[int, ...], str | None, int]]
"""Ids, how they end, and how many have log probabilities."""

pytestmark = pytest.mark.usefixtures("no_wait_is_long")

BAD_WORDS = tuple((first, last) for first in range(0, 32, 2) for last in range(2, 32, 6))
SAMPLINGS = [
    Sampling(max_tokens=20, temperature=1.3, seed=7),
    Sampling(max_tokens=17, temperature=1.3, seed=8, repetition_penalty=1.3, frequency_penalty=0.4),
    Sampling(max_tokens=20, temperature=1.3, seed=9, logprobs=2, bad_words=BAD_WORDS),
    Sampling(max_tokens=14, temperature=1.2, seed=4, prompt_logprobs=1),
]


ANSWERS = [(False,), (True, False), (True, True, False, False, False)]
BATCHES = [(1, 1), (2, 1), (5, 1), (1, 3), (2, 5)]
"""Periods and patiences."""
OPTIONS: list[dict] = [{}, {"step_tokens": 9, "max_sequences": 9}, {"cache_tokens": 160}, {"prefix_cache": False}]


def traffic() -> list[Add]:
    """Four requests with a constraint, "c" and a number, among as many free choices and two more."""
    bound = [
        Add(f"c{number}", prompt(number, 4 + number), sampling, priority=number % 2)
        for number, sampling in enumerate(SAMPLINGS)
    ]
    return [
        *bound,
        Add("f1", prompt(1, 9), Sampling(max_tokens=40, temperature=0.7, seed=1), tuple(map(Choice, range(4)))),
        Add("f2", prompt(2, 6), Sampling(max_tokens=40, temperature=0.0), tuple(map(Choice, range(2)))),
    ]


def start(machine: Engine, batch: SlowBatch | None, adds: list[Add] | None = None) -> Engine:
    for add in traffic() if adds is None else adds:
        constraint = BracketConstraint(100) if add.request_id.startswith("c") else None
        machine.add(add, slow(constraint, batch) if constraint and batch else constraint)
    return machine


def results_of(machine: Engine) -> Results:
    return {
        key: (ids_of(each), each[-1].finish_reason, sum(bool(output.logprobs) for output in each))
        for key, each in finish(machine).items()
    }


def late_engine(model: LateModel | None = None, **options: object) -> Engine:
    return engine(model or LateModel(), **{"max_sequences": 12, "step_tokens": 48, "cache_tokens": 800, **options})


@pytest.fixture(scope="module")
def undisturbed() -> Results:
    """Every request alone, on a device that is waited for."""
    results: Results = {}
    for add in traffic():
        results |= results_of(start(engine(step_tokens=64, prefix_cache=False), None, [add]))
    return results


@pytest.fixture(autouse=True)
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if these few were many, but that nobody waits for others to start with: all are to run at once."""
    monkeypatch.setattr("worker.engine.scheduler.MANY", 1)
    monkeypatch.setattr("worker.engine.cohort.FEWEST_STARTS", 0)


@pytest.fixture
def time_left(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says in turn whether there is time, whatever the clock does."""

    def set_time(*answers: bool) -> None:
        left: Iterator[bool] = cycle(answers)
        monkeypatch.setattr("worker.engine.cuda.runner.CudaRunner.has_time", lambda *_: next(left))

    return set_time


@pytest.mark.parametrize("batch_number", range(len(BATCHES)))
@pytest.mark.parametrize(
    "options_number", range(len(OPTIONS)), ids=["batched", "chunked", "preempted", "nothing cached"]
)
def test_no_id_depends_on_which_tokens_are_taken_late(
    undisturbed: Results, time_left: Callable[..., None], options_number: int, batch_number: int
) -> None:
    """Each batch with each of the options, and each pair of one of these and one of the answers."""
    options = OPTIONS[options_number]
    time_left(*ANSWERS[(options_number + batch_number) % len(ANSWERS)])
    batch = SlowBatch(*BATCHES[batch_number])
    machine = start(late_engine(**options), batch)
    assert results_of(machine) == undisturbed
    assert batch.num_unknown >= 10
    if "cache_tokens" in options:
        assert machine.stats(memory_bytes=0).preemptions > 0


@pytest.mark.parametrize("num_steps", range(2, 14, 3))
def test_aborting_one_whose_token_is_late_ends_it_and_no_other(
    undisturbed: Results, time_left: Callable[..., None], num_steps: int
) -> None:
    time_left(False)
    machine = start(late_engine(), SlowBatch(1))
    outputs = [output for _ in range(num_steps) for output in machine.step()]
    machine.abort(Abort("c0"))
    machine.abort(Abort("c2"))
    told = finish(machine, outputs)
    for key, (ids, reason, _) in undisturbed.items():
        ended = told[key][-1].finish_reason
        assert ended == ("abort" if key[0] in {"c0", "c2"} else reason)
        assert ids_of(told[key]) == ids[: len(ids_of(told[key]))]
        assert ended == "abort" or len(ids_of(told[key])) == len(ids)


@pytest.mark.parametrize("fails_at", [1, 2, 5])
@pytest.mark.parametrize("method", ["take", "write_mask"])
def test_a_constraint_that_fails_later_ends_its_request_alone(
    undisturbed: Results, time_left: Callable[..., None], method: str, fails_at: int
) -> None:
    time_left(False)
    machine = start(late_engine(), SlowBatch(1))
    bad = FailingConstraint(method, fails_at, ValueError("secret"))
    machine.add(Add("bad", (3, 4), Sampling(max_tokens=20)), slow(bad, SlowBatch(1)))
    results = results_of(machine)
    ids, reason, _ = results.pop(("bad", 0))
    assert (len(ids), reason) == (fails_at - 1, "error")
    assert results == undisturbed


def test_free_answers_go_on_in_every_step_and_each_late_one_in_its_turn(time_left: Callable[..., None]) -> None:
    time_left(False)
    machine = late_engine(cache_tokens=1200)
    bound = [Add(f"c{number}", (3, number), Sampling(max_tokens=60, seed=number)) for number in range(4)]
    free = [Add(f"f{number}", (5, number), Sampling(max_tokens=60, temperature=0.0)) for number in range(6)]
    start(machine, SlowBatch(1), bound + free)
    for _ in range(4):
        machine.step()
    counts = {add.request_id: 0 for add in bound + free}
    for _ in range(50):
        outputs = machine.step()
        for output in outputs:
            counts[output.request_id] += len(output.ids)
        assert {output.request_id for output in outputs if output.ids} >= {add.request_id for add in free}
    taken = [counts[add.request_id] for add in bound]
    assert sum(taken) >= 49, "one in every step"
    assert max(taken) - min(taken) <= 1


def test_nothing_is_late_while_there_is_time(undisturbed: Results, time_left: Callable[..., None]) -> None:
    time_left(True)
    machine = start(late_engine(), SlowBatch(2))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(LateDraws, "__bool__", lambda late: bool(late.sequences) and pytest.fail("one is late"))
        assert results_of(machine) == undisturbed


def test_one_whose_state_was_overwritten_is_waited_for(time_left: Callable[..., None]) -> None:
    time_left(False)
    expected = results_of(start(engine(RecurrentModel(), step_tokens=64), None))
    batch = SlowBatch(1)
    assert results_of(start(late_engine(LateModel(RecurrentModel())), batch)) == expected
    assert not batch.num_unknown
