"""Log probabilities of prompts: they are the model's, whatever else is in the engine, and change nobody else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kernels.batch import Step
from kernels.reference.sampling import log_probabilities
from tests.worker.engine.bracket_constraint import BracketConstraint, opens
from tests.worker.engine.context_model import ContextModel
from tests.worker.engine.cuda.late_device import LateModel
from tests.worker.engine.generation import SAMPLINGS, engine, finish, ids_of, prompt, sequence
from tests.worker.logprob_records import TokenLogprobs, read
from worker.contract import Add, Choice, Sampling, TokenOutput
from worker.engine.batch_builder import build_step
from worker.engine.engine import Engine
from worker.engine.sequence import Chunk

NUM_TOPS = {1: 0, 4: 3, 5: 20}
"""Alternatives to each token of a prompt, by the request's number."""


pytestmark = pytest.mark.usefixtures("no_wait_is_long")


class CountingModel(ContextModel):
    """Knows the most rows of logits that a step had."""

    most_rows = 0

    def forward(self, step: Step, cache: np.ndarray) -> np.ndarray:
        self.most_rows = max(self.most_rows, step.logit_rows.size)
        return super().forward(step, cache)


def asking(sampling: Sampling, num_top: int | None) -> Sampling:
    fields = {name: getattr(sampling, name) for name in Sampling.__struct_fields__}
    return Sampling(**{**fields, "prompt_logprobs": num_top})


def traffic(**changed: int | None) -> list[Add]:
    """Seven requests of which three want to know of their prompts: one has a long one, one a constraint."""
    return [
        Add(
            f"r{n}",
            prompt(n % 5, 3 + 5 * n),
            asking(SAMPLINGS[n % 4], changed.get("all", NUM_TOPS.get(n))),
            priority=n % 3,
        )
        for n in range(7)
    ]


Outputs = dict[tuple[str, int], list[TokenOutput]]


def generate(machine: Engine, adds: list[Add]) -> Outputs:
    for add in adds:
        machine.add(add, BracketConstraint(12) if add.request_id == "r4" else None)
    return finish(machine)


def told(outputs: list[TokenOutput], num_top: int | None) -> list[TokenLogprobs] | None:
    """Of the prompt; it comes with the first token and never again."""
    assert all(output.prompt_logprobs is None for output in outputs[1:])
    return None if outputs[0].prompt_logprobs is None else read(outputs[0].prompt_logprobs, num_top or 0)


def expected(prompt_ids: tuple[int, ...], num_top: int) -> list[TokenLogprobs]:
    """By one step over the whole prompt."""
    model = ContextModel()
    cache = model.allocate_cache(20, 4)
    step = build_step([Chunk(sequence(list(prompt_ids), list(range(20))), len(prompt_ids), True)], 4)
    logits = model.forward(replace(step, logit_rows=np.arange(len(prompt_ids), dtype=np.int32)), cache)
    values = np.empty_like(logits)
    log_probabilities(logits, out=values)
    rows = zip(values.astype(float), prompt_ids[1:], strict=False)
    tops = [np.argsort(-row, kind="stable")[:num_top].tolist() for row in values]
    return [
        TokenLogprobs(row[token_id], tuple(top), tuple(row[top]))
        for (row, token_id), top in zip(rows, tops, strict=False)
    ]


def assert_close(found: list[TokenLogprobs] | None, wanted: list[TokenLogprobs]) -> None:
    assert found is not None and len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.top_ids == other.top_ids
        assert (one.logprob, *one.top_logprobs) == pytest.approx((other.logprob, *other.top_logprobs), abs=1e-5)


def check(outputs: Outputs, adds: list[Add]) -> None:
    for add in adds:
        num_top = add.sampling.prompt_logprobs
        found = told(outputs[add.request_id, 0], num_top)
        if num_top is None:
            assert found is None
        else:
            assert_close(found, expected(add.prompt_ids, num_top))


@pytest.fixture(scope="module")
def unasked() -> dict[tuple[str, int], tuple[int, ...]]:
    """The tokens of the same requests if none of them wants to know of its prompt."""
    outputs = generate(engine(), [Add(add.request_id, add.prompt_ids, asking(add.sampling, None)) for add in traffic()])
    return {key: ids_of(each) for key, each in outputs.items()}


@pytest.mark.parametrize(
    "options",
    [{}, {"step_tokens": 8}, {"cache_tokens": 64}, {"max_sequences": 2}, {"max_sequences": 1}, {"prefix_cache": False}],
    ids=["batched", "chunked", "preempted", "in turn", "alone", "nothing cached"],
)
def test_they_are_the_models_however_steps_are_cut_and_change_no_token(
    make: Callable[..., Engine], unasked: dict, options: dict
):
    machine = make(**options)
    for _ in range(2):  # the second time every prompt is in the prefix cache
        outputs = generate(machine, traffic())
        check(outputs, traffic())
        assert {key: ids_of(each) for key, each in outputs.items()} == unasked
    assert machine.stats(memory_bytes=0).kv_blocks_used == 0


@settings(max_examples=20)
@given(
    step_tokens=st.integers(1, 20),
    cache_tokens=st.integers(56, 120),
    max_sequences=st.integers(1, 8),
    order=st.permutations(range(7)),
    late=st.booleans(),
)
def test_no_step_has_more_rows_of_logits_than_sequences_may_run(
    step_tokens: int, cache_tokens: int, max_sequences: int, order: list[int], late: bool
):
    model = CountingModel()
    machine = engine(
        LateModel(model) if late else model,
        step_tokens=step_tokens, cache_tokens=cache_tokens, max_sequences=max_sequences,
    )  # fmt: skip
    adds = traffic(all=2)
    outputs = generate(machine, [adds[number] for number in order])
    check(outputs, adds)
    assert model.most_rows <= machine.max_sequences


def test_who_comes_while_a_long_prompt_is_reported_starts_at_once():
    machine = engine(max_sequences=4, step_tokens=64)
    machine.add(Add("long", prompt(1, 60), Sampling(max_tokens=1, prompt_logprobs=1)))
    machine.step()
    for number in range(3):
        machine.add(Add(f"r{number}", (3, number), Sampling(max_tokens=1)))
    first = [output.request_id for _ in range(2) for output in machine.step()]
    assert first == ["r0", "r1", "r2"], (
        "two in a step: one row of logits is the long prompt's, one it gets of the others"
    )


def test_choices_share_the_requests_and_the_first_one_has_it(make: Callable[..., Engine]):
    machine = make()
    machine.add(
        Add("r", prompt(2, 21), Sampling(max_tokens=6, seed=4, prompt_logprobs=2), (Choice(0), Choice(1), Choice(2)))
    )
    outputs = finish(machine)
    assert_close(told(outputs["r", 0], 2), expected(prompt(2, 21), 2))
    assert told(outputs["r", 1], 2) is told(outputs["r", 2], 2) is None
    assert machine.stats(memory_bytes=0).prefix_hit_tokens == 40, "the others found what the first has computed"


@pytest.mark.parametrize("logprobs", [None, 1])
def test_a_constraint_takes_the_token_that_comes_with_them(make: Callable[..., Engine], logprobs: int | None):
    machine = make()
    sampling = Sampling(max_tokens=9, temperature=0.0, logprobs=logprobs, prompt_logprobs=2)
    machine.add(Add("r", prompt(0, 6), sampling), BracketConstraint(1))
    outputs = finish(machine)["r", 0]
    assert not opens(outputs[0].ids[0]), "a document of one token"
    assert (len(ids_of(outputs)), outputs[-1].finish_reason) == (1, "stop")


def test_a_choice_that_goes_on_without_them_in_its_log_gets_them_again(make: Callable[..., Engine]):
    machine = make()
    sampling = Sampling(max_tokens=6, seed=4, prompt_logprobs=2)
    machine.add(Add("r", prompt(2, 21), sampling, (Choice(0, (1,) * 6), Choice(1, (4, 5)))))
    outputs = finish(machine)
    assert told(outputs["r", 0], 2) is None
    assert_close(told(outputs["r", 1], 2), expected(prompt(2, 21), 2))


def test_a_prompt_of_one_token_has_none(make: Callable[..., Engine]):
    machine = make()
    machine.add(Add("r", (3,), Sampling(max_tokens=2, prompt_logprobs=2)))
    assert told(finish(machine)["r", 0], 2) == []


@pytest.mark.parametrize("num_tokens", [12, 40])
def test_logits_that_are_no_numbers_are_an_error_of_this_request(make: Callable[..., Engine], num_tokens: int):
    machine = make(ContextModel(poison_id=31))
    machine.add(Add("bad", (*prompt(1, 6), 31, *prompt(0, num_tokens)), Sampling(max_tokens=4, prompt_logprobs=0)))
    machine.add(Add("good", prompt(0, 20), Sampling(max_tokens=4, prompt_logprobs=1)))
    outputs = finish(machine)
    (bad,) = outputs["bad", 0]
    assert (bad.finish_reason, "non-finite" in (bad.error_message or "")) == ("error", True)
    assert_close(told(outputs["good", 0], 1), expected(prompt(0, 20), 1))


def test_chunks_that_run_again_after_a_failed_step_are_reported_once(make: Callable[..., Engine]):
    machine = make()
    model = machine._runner._model
    forward, calls, failed = model.forward, iter(range(1000)), []

    def fail_sometimes(step: Step, cache: object) -> object:
        if step.context_lengths.shape[0] > 1 and next(calls) % 3 == 2:
            failed.append(step)
            raise MemoryError
        return forward(step, cache)

    model.forward = fail_sometimes
    check(generate(machine, traffic(all=1)), traffic(all=1))
    assert failed


class CrowdedModel(ContextModel):
    """Computes one sequence at a time, or fails."""

    def forward(self, step: Step, cache: np.ndarray) -> np.ndarray:
        if step.context_lengths.size > 1:
            raise MemoryError
        return super().forward(step, cache)


def test_a_failed_step_that_tells_nothing_when_it_is_run_again_is_not_the_end():
    adds = [Add(f"r{n}", prompt(n, 20), Sampling(max_tokens=2, seed=n, prompt_logprobs=1)) for n in range(2)]
    check(generate(engine(CrowdedModel(), step_tokens=40), adds), adds)
