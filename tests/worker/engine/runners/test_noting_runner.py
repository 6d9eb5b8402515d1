"""What the file says of the steps in flight, while an engine runs them."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Collection, Iterator

import pytest

from tests.worker.engine.context_model import ContextModel
from tests.worker.engine.generation import engine, finish, prompt, sequence, traffic
from worker.contract import Abort, Add, Choice, Sampling
from worker.engine.logits.late_draws import LateDraws
from worker.engine.runner import Result
from worker.engine.runners.in_flight_file import InFlightFile
from worker.engine.runners.noting_runner import NotingRunner
from worker.engine.sequence import Chunk, Sequence


class CountingFile(InFlightFile):
    """Counts what is written."""

    num_writes = 0

    def write(self, request_ids: frozenset[str]) -> None:
        self.num_writes += request_ids != self.request_ids
        super().write(request_ids)


class DeepRunner:
    """Has two steps in flight; a launch fails when it is told to."""

    depth = 2

    def __init__(self) -> None:
        self.steps: deque[list[Chunk]] = deque()
        self.fails = False

    def launch(self, chunks: list[Chunk], *, draws: bool = True) -> None:
        if self.fails:
            raise ValueError
        self.steps.append(chunks)
        self.is_drawn = draws

    def draw(self, void: Collection[Sequence]) -> None:
        if self.fails:
            self.steps.pop()
            raise ValueError("on purpose")
        self.is_drawn = True
        self.void = void

    def collect(self) -> list[Result]:
        return [None for _ in self.steps.popleft()]


@pytest.fixture
def file() -> Iterator[CountingFile]:
    with tempfile.TemporaryFile() as file:
        yield CountingFile(file.fileno())


def chunks(*names: str) -> list[Chunk]:
    return [Chunk(SEQUENCES[name], 1, True) for name in names]


SEQUENCES = {name: sequence([1], [0]) for name in "abcd"}
for name, each in SEQUENCES.items():
    each.request_id = name


def test_it_says_whose_sequences_are_in_any_step_in_flight(file: CountingFile) -> None:
    runner = NotingRunner(DeepRunner(), file, LateDraws())
    assert runner.depth == 2
    runner.launch(chunks("a", "b"))
    assert file.request_ids == {"a", "b"}
    runner.launch(chunks("b", "c"))
    assert file.request_ids == {"a", "b", "c"}
    assert runner.collect() == [None, None]
    runner.launch(chunks("b", "c"))
    assert file.request_ids == {"b", "c"}, "the step with a is over"
    file.add(["d"])
    runner.collect()
    runner.launch(chunks("b", "c"))
    assert file.request_ids == {"b", "c"}, "d has been added, and waits"


def test_what_is_not_compiled_any_more_is_gone_with_the_next_step_of_the_same_sequences(file: CountingFile) -> None:
    runner = NotingRunner(DeepRunner(), file, LateDraws())
    file.set_compiling(frozenset("c"))
    for _ in range(3):
        runner.launch(chunks("a", "b"))
        runner.collect()
        assert file.request_ids == {"a", "b", "c"}
    file.set_compiling(frozenset())
    runner.launch(chunks("a", "b"))
    assert file.request_ids == {"a", "b"}


def test_those_whose_constraints_are_still_at_work_are_named_though_they_are_in_no_step(file: CountingFile) -> None:
    late = LateDraws()
    runner = NotingRunner(DeepRunner(), file, late)
    late._draws[SEQUENCES["c"]] = 7
    for _ in range(2):
        runner.launch(chunks("a", "b"))
        runner.collect()
        assert file.request_ids == {"a", "b", "c"}
    late._draws.clear()
    runner.launch(chunks("a", "b"))
    assert file.request_ids == {"a", "b"}


def test_a_step_that_could_not_be_launched_is_not_in_flight(file: CountingFile) -> None:
    deep = DeepRunner()
    runner = NotingRunner(deep, file, LateDraws())
    runner.launch(chunks("a"))
    deep.fails = True
    with pytest.raises(ValueError):
        runner.launch(chunks("b"))
    assert file.request_ids == {"a", "b"}
    deep.fails = False
    runner.launch(chunks("c"))
    assert file.request_ids == {"a", "c"}


def test_steps_of_the_same_sequences_write_nothing(file: CountingFile) -> None:
    runner = NotingRunner(DeepRunner(), file, LateDraws())
    runner.launch(chunks("a", "b"))
    for _ in range(100):
        runner.launch(chunks("a", "b"))
        runner.collect()
    assert file.num_writes == 1
    for _ in range(50):  # b's next draw depends on the ids before it: every other step goes without it
        runner.launch(chunks("a"))
        runner.collect()
        runner.launch(chunks("a", "b"))
        runner.collect()
    assert file.num_writes == 1


class WatchingModel(ContextModel):
    """Keeps what the file said at each step, beside how many tokens the step had of each sequence."""

    def __init__(self, file: InFlightFile) -> None:
        super().__init__()
        self.file = file
        self.said: list[frozenset[str]] = []

    def forward(self, step, cache):
        self.said.append(self.file.request_ids)
        return super().forward(step, cache)


def test_requests_that_wait_in_the_engine_are_not_among_them(file: CountingFile) -> None:
    model = WatchingModel(file)
    machine = engine(model, max_sequences=2)
    machine.note_in_flight(file)
    adds = [Add(f"r{i}", prompt(i, 4), Sampling(max_tokens=5), (Choice(0), Choice(1))[: 1 + i % 2]) for i in range(6)]
    for each in adds:
        machine.add(each)
    finish(machine)
    assert {len(said) for said in model.said} <= {1, 2}
    assert all(len(sizes) >= len(said) for said, sizes in zip(model.said, model.sizes, strict=True))
    assert frozenset.union(*model.said) == {each.request_id for each in adds}
    assert file.num_writes < len(model.sizes) / 2


def test_of_a_step_that_fails_each_sequence_is_tried_and_noted_alone(file: CountingFile) -> None:
    model = WatchingModel(file)
    model.crash_id = 31
    machine = engine(model)
    machine.note_in_flight(file)
    machine.add(Add("good", (1, 2), Sampling(max_tokens=3)))
    machine.add(Add("bad", (31, 2), Sampling(max_tokens=3)))
    ended = finish(machine)
    assert ended["bad", 0][-1].finish_reason == "error"
    assert ended["good", 0][-1].finish_reason == "length"
    assert model.said[:3] == [{"good", "bad"}, {"good"}, {"bad"}]


def test_it_changes_nothing_in_what_is_generated(file: CountingFile) -> None:
    plain, noting = engine(), engine()
    noting.note_in_flight(file)
    for machine in (plain, noting):
        for each in traffic():
            machine.add(each)
        machine.abort(Abort("r1"))
    assert finish(plain) == finish(noting)


def test_a_step_that_is_drawn_from_later_is_in_flight_unless_that_fails(file: CountingFile) -> None:
    deep = DeepRunner()
    runner = NotingRunner(deep, file, LateDraws())
    runner.launch(chunks("a"), draws=False)
    assert not deep.is_drawn
    runner.draw([SEQUENCES["a"]])
    assert deep.is_drawn
    assert deep.void == [SEQUENCES["a"]]
    runner.launch(chunks("b"), draws=False)
    deep.fails = True
    with pytest.raises(ValueError, match="on purpose"):
        runner.draw(())
    deep.fails = False
    runner.launch(chunks("c"))
    assert file.request_ids == {"a", "c"}
