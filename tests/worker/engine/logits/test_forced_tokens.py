"""Tokens about which a constraint leaves no choice: the same ids as draws give, in fewer steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.engine.bracket_constraint import FailingConstraint, RunConstraint
from tests.worker.engine.conftest import MACHINES
from tests.worker.engine.context_model import ContextModel
from tests.worker.engine.cuda.late_device import LateModel
from tests.worker.engine.generation import engine, finish, ids_of, prompt
from worker.contract import Add, Choice, Sampling, TokenOutput
from worker.engine import scheduler
from worker.engine.engine import Engine
from worker.engine.logits.forced_tokens import MOST_AT_ONCE, append_forced
from worker.engine.sequence import Sequence
from worker.load import load_engine, open_configured_device
from worker.model.gguf import open_gguf
from worker.settings import Settings

pytestmark = pytest.mark.usefixtures("no_wait_is_long")

LENGTHS = (1, 3, 5, 9)
"""Ids that are forced behind an opening bracket, request by request."""
BIASED = Sampling(max_tokens=24, temperature=1.1, logit_bias={0: 4.0, 8: 4.0, 16: 4.0}, seed=1)


def traffic() -> list[Add]:
    """Twelve requests; a third of them cannot have tokens without a draw."""
    samplings = [
        Sampling(max_tokens=24, temperature=1.5, seed=3),
        Sampling(max_tokens=17, temperature=1.2, stop_token_ids=(4,), seed=4),
        BIASED,
        Sampling(max_tokens=30, temperature=1.5, seed=5, bad_words=((4, 2), (2, 6))),
        Sampling(max_tokens=12, temperature=1.5, seed=6),
        Sampling(max_tokens=24, temperature=1.5, seed=6, logprobs=2),
    ]
    return [Add(f"r{n}", prompt(n, 2 + 3 * (n % 5)), samplings[n % 6], priority=n % 3) for n in range(12)]


def draws_late() -> bool:
    """Whether they are drawn on a device."""
    return scheduler.MANY == 1


Results = dict[tuple[str, int], tuple[tuple[int, ...], str | None, str | None]]


def generate(machine: Engine, adds: list[Add], *, is_told: bool = True) -> Results:
    for add in adds:
        constraint = RunConstraint(20, LENGTHS[int(add.request_id[1:]) % 4], is_told=is_told)
        machine.add(add, constraint)
    outputs = finish(machine)
    return {key: (ids_of(each), each[-1].finish_reason, each[-1].error_code) for key, each in outputs.items()}


@pytest.fixture(scope="module")
def drawn() -> Results:
    """Every request alone, one token after the other."""
    results: Results = {}
    for add in traffic():
        machine = engine(step_tokens=64, prefix_cache=False)
        results |= generate(machine, [add], is_told=False)
        assert machine.stats(memory_bytes=0).forced_tokens == 0
    return results


@pytest.mark.parametrize(
    "options",
    [{}, {"step_tokens": 5}, {"cache_tokens": 56}, {"max_sequences": 3}, {"prefix_cache": False}],
    ids=["batched", "chunked", "preempted", "in turn", "nothing cached"],
)
def test_ids_are_those_of_draws_one_by_one(make: Callable[..., Engine], drawn: Results, options: dict) -> None:
    machine = make(**options)
    assert generate(machine, traffic()) == drawn
    assert (machine.stats(memory_bytes=0).forced_tokens > 30) != draws_late()
    if "cache_tokens" in options:
        assert machine.stats(memory_bytes=0).preemptions > 0
    assert {reason for _, reason, _ in drawn.values()} >= {"stop", "length"}


def test_resumed_equals_uninterrupted_also_within_a_run_of_forced_ones(
    make: Callable[..., Engine], drawn: Results
) -> None:
    for add in traffic():
        ids, *end = drawn[add.request_id, 0]
        number = int(add.request_id[1:])
        cuts = {f"r{number + len(LENGTHS) * cut}": cut for cut in range(len(ids) + 1)}  # with the same constraint
        resumed = [
            Add(name, add.prompt_ids, add.sampling, (Choice(0, ids[:cut]),), add.priority) for name, cut in cuts.items()
        ]
        assert generate(make(), resumed) == {(name, 0): (ids[cut:], *end) for name, cut in cuts.items()}


def test_choices_equal_requests_with_consecutive_seeds(make: Callable[..., Engine]) -> None:
    add = traffic()[0]
    together = generate(make(), [replace_choices(add, Choice(0), Choice(1), Choice(2))])
    for choice in range(3):
        alone = Add(add.request_id, add.prompt_ids, Sampling(max_tokens=24, temperature=1.5, seed=3 + choice))
        assert generate(make(), [alone], is_told=False)[add.request_id, 0] == together[add.request_id, choice]


def replace_choices(add: Add, *choices: Choice) -> Add:
    return Add(add.request_id, add.prompt_ids, add.sampling, choices, add.priority)


@cache
def drawn_beyond(recompute_at: int) -> Results:
    """What draws one by one give where a model computes a sequence of more tokens than that anew."""
    return generate(engine(ContextModel(recompute_at=recompute_at)), traffic(), is_told=False)


@pytest.mark.parametrize("recompute_at", range(12, 26))
def test_a_sequence_that_outgrows_the_models_limit_with_them_is_computed_anew(
    make: Callable[..., Engine], request: pytest.FixtureRequest, recompute_at: int
) -> None:
    """Of limits, devices and options each pair: whether the limit lies within a run depends on the limit alone."""
    number = recompute_at + list(MACHINES).index(request.node.callspec.params["make"])
    options: dict = ({}, {"step_tokens": 5}, {"cache_tokens": 56})[number % 3]
    machine = make(ContextModel(recompute_at=recompute_at), **options)
    assert generate(machine, traffic()) == drawn_beyond(recompute_at)


@settings(max_examples=20)
@given(
    step_tokens=st.integers(1, 20),
    cache_tokens=st.integers(56, 120),
    max_sequences=st.integers(1, 12),
    order=st.permutations(range(12)),
    many=st.sampled_from([None, 1, 3, 5, 64]),
)
def test_no_schedule_changes_what_a_request_says(drawn, step_tokens, cache_tokens, max_sequences, order, many):
    options = {"step_tokens": step_tokens, "cache_tokens": cache_tokens, "max_sequences": max_sequences}
    machine = engine(None if many is None else LateModel(), **options)
    adds = traffic()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("worker.engine.scheduler.MANY", many or 0)
        assert generate(machine, [adds[number] for number in order]) == drawn


def test_they_are_computed_in_one_step_with_the_token_before_them() -> None:
    machine = engine()
    machine.add(
        Add("r", (3, 4, 5), Sampling(max_tokens=24, temperature=1.5, seed=3)), RunConstraint(20, 5, is_told=True)
    )
    outputs: list[TokenOutput] = []
    while machine.has_work:
        outputs += machine.step()
    sizes = [len(output.ids) for output in outputs]
    assert max(sizes) >= 6
    assert machine._runner._model.sizes == [(3,), *((size,) for size in sizes[:-1])]
    stats = machine.stats(memory_bytes=0)
    assert (stats.output_tokens, stats.forced_tokens) == (sum(sizes), sum(sizes) - len(sizes))


def test_they_are_drawn_where_many_run_on_a_device_that_works_by_itself(
    drawn: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.engine.scheduler.MANY", 8)
    for num_free, by_itself, is_fed in ((3, True, True), (7, True, False), (7, False, True)):
        machine = engine(LateModel() if by_itself else None, max_sequences=16, cache_tokens=1024)
        few = traffic()[1:5:3]
        for number in range(num_free):
            machine.add(Add(f"free{number}", prompt(number, 3), Sampling(max_tokens=100), priority=-1))
        results = generate(machine, few)
        assert {key: results[key] for key in drawn if key in results} == {
            (add.request_id, 0): drawn[add.request_id, 0] for add in few
        }
        assert (machine.stats(memory_bytes=0).forced_tokens > 0) == is_fed


def test_a_prompt_that_takes_many_steps_does_not_hold_them_up() -> None:
    machine = engine(step_tokens=8, cache_tokens=256)
    machine.add(
        Add("r", (3, 4, 5), Sampling(max_tokens=24, temperature=1.5, seed=3)), RunConstraint(20, 5, is_told=True)
    )
    machine.step()
    machine.add(Add("long", prompt(1, 60), Sampling(max_tokens=1), priority=-100))
    got = [sum(len(output.ids) for output in machine.step() if output.request_id == "r") for _ in range(4)]
    assert all(got)


def test_many_wait_for_the_next_draw() -> None:
    sequence = Sequence("r", 0, Sampling(max_tokens=200), 0, [1], 1, 200, constraint=_Endless(0))
    for number in range(3):
        ids, error = append_forced(sequence)
        assert (len(ids), error, sequence.num_tokens) == (MOST_AT_ONCE, None, 1 + (number + 1) * MOST_AT_ONCE)


class _Endless(RunConstraint):
    def __init__(self, num_ids: int) -> None:
        super().__init__(num_ids, 1, is_told=True)

    @property
    def is_complete(self) -> bool:
        return False

    def forced_id(self, num_left: int) -> int | None:
        return 2


@pytest.mark.parametrize("unwanted", [{"logprobs": 0}, {"repetition_penalty": 1.2}, {"logit_bias": {2: 1.0}}])
def test_none_is_taken_where_a_draw_is_needed_all_the_same(unwanted: dict) -> None:
    sequence = Sequence("r", 0, Sampling(max_tokens=200, **unwanted), 0, [1], 1, 200, constraint=_Endless(0))
    assert append_forced(sequence) == ([], None)
    assert append_forced(Sequence("r", 0, Sampling(max_tokens=200), 0, [1], 1, 200)) == ([], None)


def test_one_that_would_end_an_answer_too_early_is_left_to_the_draw_that_says_so(make: Callable[..., Engine]) -> None:
    machine = make()
    sampling = Sampling(max_tokens=24, temperature=1.5, seed=3, bad_words=((2, 4),))
    machine.add(Add("r", (3, 4, 5), sampling), RunConstraint(20, 3, is_told=True))
    *_, last = finish(machine)["r", 0]
    assert (last.error_code, "allows no token" in last.error_message) == ("INTERNAL", True)


@pytest.mark.parametrize("method", ["forced_id", "take"])
def test_a_constraint_that_fails_behind_a_token_ends_its_request_alone_and_keeps_that(
    make: Callable[..., Engine], drawn: Results, method: str
) -> None:
    for fails_at in itertools.count(1):
        machine = make()
        machine.add(Add("bad", (3, 4), Sampling(max_tokens=8, seed=2)), _FailingRun(method, fails_at))
        for add in traffic()[:4]:
            constraint = RunConstraint(20, LENGTHS[int(add.request_id[1:]) % 4], is_told=True)
            machine.add(add, constraint)
        outputs = finish(machine)
        bad = outputs.pop(("bad", 0))
        others = {key: (ids_of(each), each[-1].finish_reason, each[-1].error_code) for key, each in outputs.items()}
        assert others == {key: drawn[key] for key in others}
        assert machine.stats(memory_bytes=0).kv_blocks_used == 0
        if bad[-1].finish_reason != "error":
            break
        assert len(ids_of(bad)) >= fails_at - 1
    assert fails_at > 5 or (draws_late() and method == "forced_id")


class _FailingRun(FailingConstraint):
    def __init__(self, method: str, calls_left: int) -> None:
        super().__init__(method, calls_left, ValueError("secret"))

    def copy(self) -> _FailingRun:
        return _FailingRun(self.method, self.calls_left)


@pytest.mark.gpu
def test_on_a_gpu_ids_are_those_of_draws_one_by_one_too(demo_model: Path) -> None:
    options = Settings(model=str(demo_model), device="cuda:0", max_sequences=24, step_tokens=64, vram_fraction=0.2)
    device = open_configured_device(options)
    machine = load_engine(open_gguf(demo_model), device, options, lambda _done, _total: None)
    one_by_one = generate(machine, traffic(), is_told=False)
    for _ in range(3):  # sizes of steps are captured when they come again
        assert generate(machine, traffic()) == one_by_one
    assert machine.stats(memory_bytes=0).forced_tokens > 30


@pytest.mark.gpu
def test_on_a_gpu_ids_are_the_same_where_steps_are_drawn_from_late(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Settings(model=str(demo_model), device="cuda:0", max_sequences=24, step_tokens=64, vram_fraction=0.2)
    device = open_configured_device(options)
    machine = load_engine(open_gguf(demo_model), device, options, lambda _done, _total: None)
    expected = generate(machine, traffic())
    for many in (1, 5, 9):
        monkeypatch.setattr("worker.engine.scheduler.MANY", many)
        for _ in range(2):
            assert generate(machine, traffic()) == expected
