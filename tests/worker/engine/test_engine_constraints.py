"""Requests with a constraint: what they say does not depend on what happens around them, nor do they change others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.batch import Step
from orcd.errors import InvalidRequest
from tests.worker.engine.bracket_constraint import CLOSE, BracketConstraint, FailingConstraint, opens
from tests.worker.engine.context_model import ContextModel
from tests.worker.engine.cuda.late_device import LateModel
from tests.worker.engine.generation import SAMPLINGS, engine, finish, ids_of, prompt
from tests.worker.logprob_records import TokenLogprobs, read
from worker.contract import Abort, Add, Choice, Sampling, TokenOutput
from worker.engine.engine import Engine

NUM_IDS = {0: 30, 2: 6, 3: 1, 4: 40, 7: 40}
CONSTRAINTS = {f"r{number}": BracketConstraint(num_ids) for number, num_ids in NUM_IDS.items()}
BAD_WORDS = (
    (14,),
    *((first, last) for first in range(32) for last in range(32) if (first + last) % 4 == 0 and last > 2),
)
"""Of requests with the constraint, and of one without: that has one for its words."""


pytestmark = pytest.mark.usefixtures("no_wait_is_long")


def traffic() -> list[Add]:
    """Eight requests, of which `CONSTRAINTS` has five and three have bad words."""
    samplings = [
        Sampling(max_tokens=12, seed=number, temperature=1.2, bad_words=BAD_WORDS if number < 2 else ())
        for number in range(3)
    ]
    wishes = Sampling(max_tokens=14, seed=9, top_k=12, repetition_penalty=1.3, logprobs=3)
    return [
        Add(f"r{number}", prompt(number, 3 + 5 * (number % 7)), sampling, priority=number % 3)
        for number, sampling in enumerate([*samplings, wishes, samplings[0], SAMPLINGS[1], SAMPLINGS[0], wishes])
    ]


Results = dict[tuple[str, int], tuple[tuple[int, ...], str | None]]


def results_of(outputs: dict[tuple[str, int], list[TokenOutput]]) -> Results:
    return {key: (ids_of(each), each[-1].finish_reason) for key, each in outputs.items()}


def generate(machine: Engine, adds: list[Add]) -> Results:
    for add in adds:
        machine.add(add, CONSTRAINTS.get(add.request_id))
    return results_of(finish(machine))


@pytest.fixture(scope="module")
def undisturbed() -> Results:
    """Every request alone, its prompt in one piece, nothing cached."""
    results: Results = {}
    for add in traffic():
        results |= generate(engine(step_tokens=64, prefix_cache=False), [add])
    return results


def depth(ids: tuple[int, ...]) -> int:
    return sum(map(opens, ids)) - ids.count(CLOSE)


def test_the_traffic_of_these_tests_ends_in_different_ways_and_always_with_all_brackets_closed(undisturbed: Results):
    constrained = [undisturbed[name, 0] for name in CONSTRAINTS]
    assert {reason for _, reason in constrained} == {"stop", "length"}
    assert any(map(opens, constrained[0][0]))
    for ids, _ in constrained:
        assert depth(ids) == 0
        assert all(token_id % 2 == 0 or token_id == CLOSE for token_id in ids)
    assert any(token_id % 2 and token_id != CLOSE for token_id in undisturbed["r6", 0][0])


def test_bad_words_are_in_no_output_of_a_request_that_has_them_with_a_grammar_or_without(undisturbed: Results):
    def holds_one(name: str) -> bool:
        ids = undisturbed[name, 0][0]
        return any(ids[at : at + len(word)] == word for word in BAD_WORDS for at in range(len(ids)))

    without = [add.request_id for add in traffic() if not holds_one(add.request_id)]
    assert without == ["r0", "r1", "r3", "r4"], "r3 has one token only"
    assert [add.request_id for add in traffic() if add.sampling.bad_words] == ["r0", "r1", "r4"]


@pytest.mark.parametrize(
    "options",
    [{}, {"step_tokens": 5}, {"cache_tokens": 56}, {"max_sequences": 3}, {"prefix_cache": False}],
    ids=["batched", "chunked", "preempted", "in turn", "nothing cached"],
)
def test_ids_are_those_of_each_request_alone(make: Callable[..., Engine], undisturbed: Results, options: dict):
    machine = make(**options)
    assert generate(machine, traffic()) == undisturbed
    assert generate(machine, traffic()) == undisturbed, "the constraints given were changed"
    if "cache_tokens" in options:
        assert machine.stats(memory_bytes=0).preemptions > 0


@pytest.mark.parametrize(
    "options", [{}, {"step_tokens": 5}, {"cache_tokens": 56}], ids=["batched", "chunked", "preempted"]
)
@pytest.mark.parametrize("many", [2, 3, 5])
def test_ids_are_the_same_where_only_steps_of_some_are_drawn_late(
    undisturbed: Results, many: int, options: dict, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("worker.engine.scheduler.MANY", many)
    assert generate(engine(LateModel(), **options), traffic()) == undisturbed


def test_resumed_equals_uninterrupted(make: Callable[..., Engine], undisturbed: Results):
    for add in traffic():
        if add.request_id in CONSTRAINTS or add.sampling.bad_words:
            ids, reason = undisturbed[add.request_id, 0]
            for cut in range(len(ids) + 1):
                resumed = Add(add.request_id, add.prompt_ids, add.sampling, (Choice(0, ids[:cut]),))
                assert generate(make(), [resumed])[add.request_id, 0] == (ids[cut:], reason)


def test_choices_equal_requests_with_consecutive_seeds(make: Callable[..., Engine]):
    def run(seed: int, *choices: Choice) -> Results:
        return generate(make(), [Add("r0", (3, 4, 5), Sampling(max_tokens=10, seed=seed), choices)])

    together = run(40, Choice(0), Choice(1), Choice(2))
    assert [together["r0", choice] for choice in range(3)] == [run(40 + n, Choice(0))["r0", 0] for n in range(3)]
    assert len(set(together.values())) == 3


def test_a_sequence_that_outgrows_the_models_limit_is_computed_anew(make: Callable[..., Engine]):
    expected = generate(engine(ContextModel(recompute_at=20)), traffic())
    for options in ({}, {"step_tokens": 5}, {"cache_tokens": 56}):
        assert generate(make(ContextModel(recompute_at=20), **options), traffic()) == expected


@settings(max_examples=20)
@given(
    step_tokens=st.integers(1, 20),
    cache_tokens=st.integers(56, 120),
    max_sequences=st.integers(1, 8),
    order=st.permutations(range(8)),
    many=st.sampled_from([None, 1, 2, 4, 64]),
)
def test_no_schedule_changes_what_a_request_says(undisturbed, step_tokens, cache_tokens, max_sequences, order, many):
    options = {"step_tokens": step_tokens, "cache_tokens": cache_tokens, "max_sequences": max_sequences}
    adds = traffic()
    machine = engine(None if many is None else LateModel(), **options)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("worker.engine.scheduler.MANY", many or 0)
        assert generate(machine, [adds[number] for number in order]) == undisturbed


def test_it_waits_for_the_last_id_and_delays_nobody_else():
    machine = engine(LateModel())
    machine.add(Add("free", (1, 2), Sampling(max_tokens=20, temperature=0.0)))
    machine.add(Add("bound", (3, 4), Sampling(max_tokens=20)), BracketConstraint(20))
    counts = {"free": 0, "bound": 0}
    while machine.has_work and counts["free"] < 20:
        for output in machine.step():
            counts[output.request_id] += len(output.ids)
    assert 8 <= counts["bound"] <= 12


ERRORS = [(ValueError("secret"), "INTERNAL", "ValueError"), (InvalidRequest("x"), "INVALID_REQUEST", "x")]
FAILURES = [(None, "INTERNAL", "allows no token"), *ERRORS]


@pytest.mark.parametrize("fails_at", [1, 3])
@pytest.mark.parametrize("priority", [-1, 3], ids=["first of all", "behind others"])
@pytest.mark.parametrize(
    ("method", "failure"), [*(("write_mask", each) for each in FAILURES), *(("take", each) for each in ERRORS)]
)
def test_a_constraint_that_fails_ends_its_request_alone(
    make: Callable[..., Engine], undisturbed: Results, method: str, priority: int, fails_at: int, failure: tuple
):
    error, code, text = failure
    machine = make()
    bad_one = Add("bad", (3, 4), Sampling(max_tokens=20), priority=priority)
    machine.add(bad_one, FailingConstraint(method, fails_at, error))
    for add in traffic():
        machine.add(add, CONSTRAINTS.get(add.request_id))
    outputs = finish(machine)
    bad = outputs.pop(("bad", 0))
    assert results_of(outputs) == undisturbed
    assert (len(ids_of(bad)), bad[-1].finish_reason, bad[-1].error_code) == (fails_at - 1, "error", code)
    assert text in bad[-1].error_message
    assert "secret" not in bad[-1].error_message
    assert machine.stats(memory_bytes=0).kv_blocks_used == 0


@pytest.mark.parametrize(("error", "code", "text"), ERRORS)
@pytest.mark.parametrize("method", ["copy", "restore"])
def test_a_constraint_that_cannot_begin_refuses_its_request(method: str, error: Exception, code: str, text: str):
    machine = engine()
    choices = (Choice(0), Choice(1, (2, 4)))
    machine.add(Add("bad", (3, 4), Sampling(max_tokens=20), choices), FailingConstraint(method, 1, error))
    outputs = machine.step()
    assert [(output.choice, output.error_code) for output in outputs] == [(0, code), (1, code)]
    assert all(text in output.error_message and "secret" not in output.error_message for output in outputs)
    assert not machine.has_work


def test_chunks_that_run_again_after_a_failed_step_are_taken_once(make: Callable[..., Engine], undisturbed: Results):
    machine = make()
    model, calls, failed_at = machine._runner._model, itertools.count(), []
    forward = model.forward

    def fail_sometimes(step: Step, cache: object) -> object:
        if step.context_lengths.shape[0] > 1 and (number := next(calls)) % 3 == 2:
            failed_at.append(number)
            raise MemoryError
        return forward(step, cache)

    model.forward = fail_sometimes
    assert generate(machine, traffic()) == undisturbed
    assert failed_at


def test_a_grammar_without_its_constraint_is_a_bug_that_is_caught():
    with pytest.raises(AssertionError, match="nobody has compiled"):
        engine().add(Add("r", (1, 2), SAMPLINGS[0], grammar="x"))


def test_an_abort_ends_it_without_another_token(make: Callable[..., Engine]):
    machine = make()
    machine.add(Add("r", (1, 2), Sampling(max_tokens=30)), BracketConstraint(30))
    for _ in range(3):
        machine.step()
    machine.abort(Abort("r"))
    assert results_of(finish(machine)) == {("r", 0): ((), "abort")}


def test_log_probabilities_are_of_what_may_be_drawn(make: Callable[..., Engine]):
    machine = make()
    for number in range(8):
        sampling = Sampling(max_tokens=4, seed=number, logprobs=20)
        machine.add(Add(f"r{number}", (3, 4, number), sampling), BracketConstraint(4))
    outputs = [output for each in finish(machine).values() for output in each]
    for output in outputs:
        (reported,) = read(output.logprobs, 20)
        assert set(reported.top_ids) <= {*range(0, 32, 2), CLOSE}
        assert sum(map(math.exp, reported.top_logprobs)) == pytest.approx(1, abs=1e-5)
        chosen = dict(zip(reported.top_ids, reported.top_logprobs, strict=True))[output.ids[0]]
        assert reported.logprob == pytest.approx(chosen, abs=1e-5)
    told = [(read(output.logprobs, 20)[0], output.ids) for output in outputs]
    assert any(reported == TokenLogprobs(0.0, ids, (0.0,)) for reported, ids in told), "some were certain"


def test_a_grammar_that_allows_only_bad_words_is_an_error_that_says_so(make: Callable[..., Engine]):
    machine = make()
    sampling = Sampling(max_tokens=9, bad_words=tuple((token_id,) for token_id in range(0, 32, 2)))
    machine.add(Add("r", (1, 2), sampling), BracketConstraint(3))
    (output,) = finish(machine)["r", 0]
    assert (output.error_code, "allows no token" in output.error_message) == ("INTERNAL", True)


def test_a_grammar_that_could_only_end_before_min_tokens_is_an_error_that_says_so(make: Callable[..., Engine]):
    machine = make()
    sampling = Sampling(max_tokens=9, min_tokens=2, stop_token_ids=tuple(range(0, 32, 2)))
    machine.add(Add("r", (1, 2), sampling), BracketConstraint(3))
    (output,) = finish(machine)["r", 0]
    assert (output.error_code, "allows no token" in output.error_message) == ("INTERNAL", True)


def test_a_draw_that_fails_takes_no_log_probabilities_from_the_others_of_its_step(make: Callable[..., Engine]):
    asking = Sampling(max_tokens=6, temperature=0.0, logprobs=2)
    adds = [Add(f"r{number}", prompt(number, 4), asking) for number in range(1, 4)]
    expected = [[output.logprobs for output in finish_alone(make, add)] for add in adds]
    machine = make()
    machine.add(Add("bad", (3, 4), asking), FailingConstraint("write_mask", 3))
    for add in adds:
        machine.add(add)
    outputs = finish(machine)
    assert outputs["bad", 0][-1].finish_reason == "error"
    assert [[output.logprobs for output in outputs[add.request_id, 0]] for add in adds] == expected


def finish_alone(make: Callable[..., Engine], add: Add) -> list[TokenOutput]:
    machine = make()
    machine.add(add)
    return finish(machine)[add.request_id, 0]
