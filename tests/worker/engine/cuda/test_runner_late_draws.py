"""Steps that are launched before their tokens are known, and drawn from when masks are: the same tokens, each once."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from orcd.errors import CudaError
from tests.worker.engine.bracket_constraint import BracketConstraint, FailingConstraint, RunConstraint
from tests.worker.engine.context_model import ContextModel
from tests.worker.engine.cuda.late_device import LateModel
from tests.worker.engine.generation import engine, finish, ids_of, prompt
from tests.worker.engine.recurrent_model import RecurrentModel
from worker.contract import Abort, Add, Choice, Sampling
from worker.engine.engine import Engine
from worker.engine.logits.open_step import OpenStep
from worker.engine.sequence import Chunk

STATE_BYTES = RecurrentModel.bytes_per_state
MODELS = pytest.mark.parametrize("make_model", [ContextModel, RecurrentModel], ids=["attention", "recurrent"])

pytestmark = pytest.mark.usefixtures("no_wait_is_long")

Results = dict[tuple[str, int], tuple[tuple[int, ...], str | None]]


class ReplacingConstraint(BracketConstraint):
    """Puts another token in the place of each fourth one that is drawn, not only where brackets must be closed."""

    def take(self, token_id: int, num_left: int) -> int:
        if token_id % 8 == 4:
            token_id = 2 if num_left % 2 else 6
        return super().take(token_id, num_left)

    def copy(self) -> ReplacingConstraint:
        other = ReplacingConstraint(self.num_ids)
        for token_id in self.token_ids:
            other._append(token_id)
        return other


@pytest.fixture(autouse=True)
def all_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.scheduler.MANY", 1)


@pytest.fixture
def num_void(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences were void in each step that was drawn from late."""
    numbers: list[int] = []
    draw = Engine._draw

    def watched(self: Engine, step: OpenStep) -> bool:
        numbers.append(len(step.void))
        return draw(self, step)

    monkeypatch.setattr(Engine, "_draw", watched)
    return numbers


def traffic() -> list[Add]:
    """Requests with a constraint, and some without, of which some share a prompt."""
    samplings = [
        Sampling(max_tokens=20, temperature=1.3, seed=7),
        Sampling(max_tokens=17, temperature=1.3, seed=8, repetition_penalty=1.3, frequency_penalty=0.4),
        Sampling(max_tokens=20, temperature=1.3, seed=9, stop_token_ids=(2, 4), min_tokens=6),
        Sampling(max_tokens=9, temperature=0.0),
    ]
    return [
        Add(f"r{number}", prompt(number % 3, 5 + 2 * number), samplings[number % 4], (Choice(0), Choice(1)))
        for number in range(6)
    ]


def constraint_of(add: Add) -> BracketConstraint | None:
    return None if add.request_id == "r3" else ReplacingConstraint(40)


def generate(machine: Engine, adds: list[Add]) -> Results:
    for add in adds:
        machine.add(add, constraint_of(add))
    return {key: (ids_of(outputs), outputs[-1].finish_reason) for key, outputs in finish(machine).items()}


def late_engine(make_model: type[ContextModel], **options: object) -> Engine:
    return engine(LateModel(make_model()), **{"max_sequences": 12, "step_tokens": 48, "cache_tokens": 800, **options})


def alone(make_model: type[ContextModel], adds: list[Add]) -> Results:
    results: Results = {}
    for add in adds:
        results |= generate(engine(make_model(), step_tokens=64, prefix_cache=False), [add])
    return results


@MODELS
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"step_tokens": 7, "max_sequences": 5},
        {"cache_tokens": 44},
        {"prefix_cache": False},
        {"state_cache_bytes": 3 * STATE_BYTES},
        {"state_cache_bytes": 100 * STATE_BYTES},
    ],
    ids=["batched", "chunked", "preempted", "nothing cached", "few snapshots", "many snapshots"],
)
def test_an_answer_goes_on_with_the_token_that_took_the_place_of_the_drawn_one(
    make_model: type[ContextModel], options: dict, num_void: list[int]
) -> None:
    expected = alone(make_model, traffic())
    machine = late_engine(make_model, **options)
    for _ in range(2):  # then prefixes are known
        assert generate(machine, traffic()) == expected
    assert sum(num_void) > 40, "tokens that took the place of others with which a step was launched"
    stats = machine.stats(memory_bytes=0)
    assert (stats.kv_blocks_used, stats.state_slots_used) == (0, 0)
    if "cache_tokens" in options:
        assert stats.preemptions > 0


@MODELS
def test_what_is_in_the_prefix_cache_afterwards_is_of_the_tokens_that_were_appended(
    make_model: type[ContextModel], num_void: list[int]
) -> None:
    expected = alone(make_model, traffic())
    machine = late_engine(make_model, state_cache_bytes=100 * STATE_BYTES)
    assert generate(machine, traffic()) == expected
    assert any(num_void)
    hits = machine.stats(memory_bytes=0).prefix_hit_tokens
    for cut in range(0, 20, 3):
        resumed = [
            Add(add.request_id, add.prompt_ids, add.sampling, (Choice(1, expected[add.request_id, 1][0][:cut]),))
            for add in traffic()
        ]
        for key, (ids, reason) in generate(machine, resumed).items():
            assert (ids, reason) == (expected[key][0][cut:], expected[key][1])
    assert machine.stats(memory_bytes=0).prefix_hit_tokens > hits


@MODELS
def test_aborting_while_a_step_waits_for_its_masks_ends_it_and_no_other(make_model: type[ContextModel]) -> None:
    expected = alone(make_model, traffic())
    for num_steps in range(1, 9):
        machine = late_engine(make_model)
        for add in traffic():
            machine.add(add, constraint_of(add))
        outputs = [output for _ in range(num_steps) for output in machine.step()]
        machine.abort(Abort("r1"))
        machine.abort(Abort("r4", 1))
        for key, told in finish(machine, outputs).items():
            ids, reason = expected[key]
            if key in {("r1", 0), ("r1", 1), ("r4", 1)} and told[-1].finish_reason == "abort":
                assert ids_of(told) == ids[: len(ids_of(told))]
            else:
                assert (ids_of(told), told[-1].finish_reason) == (ids, reason)


def test_all_are_aborted_while_a_step_waits_for_its_masks() -> None:
    machine = late_engine(ContextModel)
    machine.add(Add("r", (1, 2, 3), Sampling(max_tokens=30)), BracketConstraint(30))
    for _ in range(3):
        machine.step()
    assert machine._open is not None
    machine.abort(Abort("r"))
    assert [output.finish_reason for output in finish(machine)["r", 0]] == ["abort"]
    assert not machine.has_work
    assert machine.stats(memory_bytes=0).kv_blocks_used == 0


@pytest.mark.parametrize("num_steps", [1, 2, 3, 6, 9])
def test_a_step_whose_draws_cannot_be_launched_is_run_again_one_by_one(num_steps: int) -> None:
    expected = alone(ContextModel, traffic())
    for num_uploads in range(3):
        machine = late_engine(ContextModel)
        for add in traffic():
            machine.add(add, constraint_of(add))
        outputs = [output for _ in range(num_steps) for output in machine.step()]
        machine._runner._model.device.uploads_left = num_uploads
        results = {key: (ids_of(each), each[-1].finish_reason) for key, each in finish(machine, outputs).items()}
        assert results == expected


def fails_once(launch: Callable[..., None], fails_at: int) -> Callable[..., None]:
    """``launch``, but that one call of it raises if its step has several chunks."""
    calls = itertools.count(1)

    def launch_or_fail(chunks: list[Chunk], *, draws: bool = True) -> None:
        if next(calls) == fails_at and len(chunks) > 1:
            raise ValueError
        launch(chunks, draws=draws)

    return launch_or_fail


@pytest.mark.parametrize("many", [2, 3, 4])
def test_who_got_forced_tokens_meanwhile_is_not_run_again_as_planned(
    many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a step that failed is run again others end in the one before it, and then those left are not many."""
    monkeypatch.setattr("worker.engine.scheduler.MANY", many)
    adds = [
        Add(f"r{number}", (1, number), Sampling(max_tokens=6 + 3 * number, temperature=1.5, seed=number))
        for number in range(4)
    ]

    def started(machine: Engine) -> Engine:
        for add in adds:
            machine.add(add, RunConstraint(40, 5, is_told=True))
        return machine

    expected = {key: ids_of(outputs) for key, outputs in finish(started(engine())).items()}
    for fails_at in range(2, 16):
        machine = started(late_engine(ContextModel))
        monkeypatch.setattr(machine._runner, "launch", fails_once(machine._runner.launch, fails_at))
        assert {key: ids_of(told) for key, told in finish(machine).items()} == expected


def test_what_fails_between_a_step_and_its_draws_is_the_end_of_an_engine_with_states() -> None:
    machine = late_engine(RecurrentModel)
    machine.add(Add("r", (1, 2, 3), Sampling(max_tokens=30)), BracketConstraint(30))
    for _ in range(3):
        machine.step()
    machine._runner._model.device.uploads_left = 0
    with pytest.raises(CudaError, match="a step with states failed: ValueError at "):
        machine.step()


@MODELS
@pytest.mark.parametrize("method", ["take", "write_mask"])
@pytest.mark.parametrize("fails_at", [1, 2, 5])
def test_a_constraint_that_fails_behind_a_launched_step_ends_its_request_alone(
    make_model: type[ContextModel], method: str, fails_at: int
) -> None:
    expected = alone(make_model, traffic())
    machine = late_engine(make_model)
    machine.add(Add("bad", (3, 4), Sampling(max_tokens=20)), FailingConstraint(method, fails_at, ValueError("secret")))
    for add in traffic():
        machine.add(add, constraint_of(add))
    outputs = finish(machine)
    bad = outputs.pop(("bad", 0))
    assert (len(ids_of(bad)), bad[-1].finish_reason) == (fails_at - 1, "error")
    assert {key: (ids_of(each), each[-1].finish_reason) for key, each in outputs.items()} == expected


def test_the_device_has_the_next_step_before_the_host_knows_the_last_ones_tokens() -> None:
    machine = late_engine(ContextModel)
    for number in range(3):
        machine.add(Add(f"r{number}", (1, number), Sampling(max_tokens=30)), BracketConstraint(30))
    for _ in range(3):
        machine.step()
    for _ in range(12):
        machine.step()
        assert len(machine._in_flight) == 2
        assert all(len(chunks) == 3 for chunks in machine._in_flight)
        assert machine._open is not None
    assert machine.stats(memory_bytes=0).steps <= 18
