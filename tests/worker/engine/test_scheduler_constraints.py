"""How often sequences with a constraint take part in steps, and that they do not hold up those without one."""

from __future__ import annotations

from collections import Counter, deque
from itertools import pairwise

import pytest

from tests.worker.engine.bracket_constraint import BracketConstraint
from tests.worker.engine.cuda.late_device import LateModel
from tests.worker.engine.generation import engine, prompt
from worker.contract import Add, Sampling
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Chunk, Sequence

NUM_STEPS = 60

pytestmark = pytest.mark.usefixtures("no_wait_is_long")


def start(num_free: int, num_constrained: int, *, rewrites_blocks: bool = False) -> Scheduler:
    machine = Scheduler(
        num_blocks=900, block_tokens=4, step_tokens=64, max_sequences=16, rewrites_blocks=rewrites_blocks
    )
    for number in range(num_free):
        machine.add(Sequence(f"free{number}", 0, Sampling(max_tokens=400), 0, [number, 1], 2, 400))
    for number in range(num_constrained):
        machine.add(bound(number))
    return machine


def bound(number: int) -> Sequence:
    constraint = BracketConstraint(400)
    return Sequence(f"bound{number}", 0, Sampling(max_tokens=400), 0, [number, 2], 2, 400, constraint=constraint)


def run(
    machine: Scheduler,
    depth: int,
    in_flight: deque[list[Chunk]] | None = None,
    num_steps: int = NUM_STEPS,
) -> list[Counter[str]]:
    """Keep ``depth`` steps in flight; how many sequences of each kind each of the last steps had."""
    in_flight = deque() if in_flight is None else in_flight
    steps: list[Counter[str]] = []
    while len(steps) < num_steps:
        while len(in_flight) < depth and (chunks := machine.plan(ahead=len(in_flight))):
            machine.launch(chunks)
            in_flight.append(chunks)
            steps.append(Counter(chunk.sequence.request_id.rstrip("0123456789") for chunk in chunks))
        for chunk in in_flight.popleft():
            machine.append(chunk.sequence, 2)
        machine.check_invariants()
    return steps[-num_steps // 2 :]


@pytest.mark.parametrize("depth", [2, 3])
def test_few_with_a_constraint_go_on_together_while_the_others_are_in_every_step(depth: int):
    steps = run(start(9, 3), depth)
    assert all(step["free"] == 9 for step in steps)
    assert [step["bound"] for step in steps[:depth]].count(3) == 1
    assert all(step["bound"] == later["bound"] for step, later in zip(steps, steps[depth:], strict=False))
    assert {step["bound"] for step in steps} == {0, 3}


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("num_free", [0, 5])
def test_as_many_with_a_constraint_as_others_or_more_are_in_every_second_step_at_least(num_free: int, depth: int):
    steps = run(start(num_free, 5), depth)
    assert all(step["free"] == num_free for step in steps)
    assert all(5 in (step["bound"], later["bound"]) for step, later in pairwise(steps))


@pytest.mark.parametrize("num_free", [0, 3, 9])
def test_many_on_a_device_that_works_by_itself_are_one_step_ahead_of_their_tokens(
    num_free: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("worker.engine.scheduler.MANY", 3)
    machine = start(num_free, 3, rewrites_blocks=True)
    assert all(step == Counter(free=num_free, bound=3) for step in run(machine, 2))
    machine = start(num_free, 3, rewrites_blocks=True)
    for ahead in range(2):
        machine.launch(machine.plan(ahead=ahead))
    assert machine.plan(ahead=2) == [], "two tokens of a sequence with a constraint are not known"


def test_of_many_those_with_a_constraint_are_in_the_cohort_until_they_are_few(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("worker.engine.scheduler.MANY", 4)
    machine, in_flight = start(2, 2, rewrites_blocks=True), deque[list[Chunk]]()
    run(machine, 2, in_flight, num_steps=4)
    assert (len(machine.cohort), machine.cohort.num_constrained) == (4, 2)
    for chunks in in_flight:
        for chunk in chunks:
            machine.append(chunk.sequence, 2)
    in_flight.clear()
    gone = next(each for each in machine.running if each.constraint is None)
    gone.finish_reason = "abort"
    machine.remove(gone)
    chunks = machine.plan(ahead=0)
    machine.launch(chunks)
    assert (len(machine.cohort), machine.cohort.num_constrained, len(chunks)) == (1, 0, 3)
    assert [chunk.sequence.constraint for chunk in machine.plan(ahead=1)] == [None]
    machine.check_invariants()


def test_a_step_behind_two_others_waits_though_only_the_first_of_them_has_drawn_for_a_constraint(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("worker.engine.scheduler.MANY", 6)
    machine = start(2, 3, rewrites_blocks=True)
    for ahead, num_bound in ((0, 3), (1, 0)):
        if ahead:
            machine.add(bound(7))  # with it they are many
        chunks = machine.plan(ahead=ahead)
        assert sum(chunk.sequence.constraint is not None for chunk in chunks) == num_bound + ahead
        machine.launch(chunks)
    assert machine.plan(ahead=2) == [], "the draws of the step before the last one are no more on the device"


def test_those_that_come_one_by_one_go_on_with_the_others():
    machine, in_flight = start(12, 0), deque[list[Chunk]]()
    for number in range(3):
        machine.add(bound(number))
        run(machine, 3, in_flight, num_steps=7)
    steps = run(machine, 3, in_flight)
    assert Counter(step["bound"] for step in steps) == {3: 10, 0: 20}
    assert all(step["free"] == 12 for step in steps)


def test_free_answers_take_as_many_steps_with_a_few_that_have_a_constraint_as_without():
    def num_steps(num_constrained: int) -> int:
        machine = engine(LateModel(), cache_tokens=400)
        for number in range(6):
            machine.add(Add(f"free{number}", prompt(number, 3), Sampling(max_tokens=24, temperature=0.0)))
        for number in range(num_constrained):
            machine.add(Add(f"bound{number}", prompt(number, 4), Sampling(max_tokens=40)), BracketConstraint(40))
        left = {f"free{number}" for number in range(6)}
        while left:
            left -= {output.request_id for output in machine.step() if output.finish_reason is not None}
        return machine.stats(memory_bytes=0).steps

    assert num_steps(2) == num_steps(0)
