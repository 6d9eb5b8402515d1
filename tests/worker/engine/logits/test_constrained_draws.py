from __future__ import annotations

import pytest

from orcd.errors import InvalidRequest, OrcdError
from tests.worker.engine.bracket_constraint import CLOSE, BracketConstraint, FailingConstraint
from tests.worker.engine.generation import sequence
from tests.worker.logprob_records import TokenLogprobs, record
from worker.engine.cohort import Draw, DrawnTokens
from worker.engine.logits.constrained_draws import TakenDraws, take_draws
from worker.engine.runner import PromptReport, Results
from worker.engine.sequence import Chunk, Sequence
from worker.engine.token_constraint import Drawn, take_alone


class NotingBatch:
    def __init__(self) -> None:
        self.calls: list[list[Drawn]] = []

    def take(self, drawn: list[Drawn]) -> list[int | Exception]:
        self.calls.append(drawn)
        return [take_alone(each) for each in drawn]


def constrained(constraint: BracketConstraint | None, num_left: int, **options: object) -> Sequence:
    each = sequence([1, 2, 3], [0], num_prompt=2, max_tokens=num_left + 1, **options)
    each.max_output, each.most_tokens, each.constraint = num_left + 1, num_left + 3, constraint
    return each


def take(sequences: list[Sequence], results: Results) -> TakenDraws:
    return take_draws([Chunk(each, 1, True) for each in sequences], results)


@pytest.mark.parametrize("batch", [None, NotingBatch()])
def test_what_is_appended_is_what_the_constraint_took(batch: NotingBatch | None) -> None:
    constraints = [BracketConstraint(100) for _ in range(3)]
    for each in constraints:
        each.batch = batch
    sequences = [
        constrained(constraints[0], 5),
        constrained(None, 5),
        *(constrained(each, 1) for each in constraints[1:]),
    ]
    error = OrcdError("x")
    taken = take(sequences, [Draw(8, None), Draw(7, None), Draw(8, None), error])
    assert taken.results == [Draw(8, None), Draw(7, None), Draw(2, None), error]
    assert (list(taken.others), list(taken.ended)) == ([sequences[2]], [])
    assert [each.revision for each in sequences] == [0, 0, 1, 0]
    assert [each.token_ids for each in constraints] == [[8], [2], []]
    if batch is not None:
        assert [[num_left for _, _, num_left in call] for call in batch.calls] == [[5, 1]]


@pytest.mark.parametrize(("num_top", "top"), [(0, ((), ())), (3, ((2,), (0.0,)))])
def test_a_token_that_was_put_in_its_place_has_probability_one(num_top: int, top: tuple) -> None:
    drawn = Draw(8, record(TokenLogprobs(-2.0, (8,)[:num_top], (-2.0,)[:num_top]), num_top))
    taken = take([constrained(BracketConstraint(100), 1, logprobs=num_top)], [drawn])
    assert taken.results == [Draw(2, record(TokenLogprobs(0.0, *top), num_top))]


def test_of_a_step_that_drew_for_all_ids_stay_ids_where_none_is_another() -> None:
    logprobs = record(TokenLogprobs(-2.0, (), ()), 0)
    sequences = [constrained(BracketConstraint(1), 5), constrained(None, 5, logprobs=0)]
    drawn = DrawnTokens([2, 9], [logprobs])
    assert take(sequences, drawn) == TakenDraws(drawn, (), [sequences[0]])
    sequences = [constrained(BracketConstraint(9), 1), *(constrained(None, 5, logprobs=each) for each in (0, None))]
    taken = take(sequences, DrawnTokens([8, 9, 7], [logprobs]))
    assert taken.results == [Draw(2, None), Draw(9, logprobs), 7]


def test_one_that_has_ended_takes_nothing() -> None:
    gone = constrained(BracketConstraint(9), 5)
    gone.finish_reason = "abort"
    drawn = DrawnTokens([8], [])
    assert take([gone], drawn).results is drawn
    assert gone.constraint.token_ids == []


def test_what_a_constraint_raises_is_the_result_of_its_sequence_alone() -> None:
    failing = [FailingConstraint("take", 1, each) for each in (ValueError("secret"), InvalidRequest("no"))]
    sequences = [constrained(each, 9) for each in (*failing, BracketConstraint(9))]
    taken = take(sequences, [Draw(4, None)] * 3)
    first, second, third = taken.results
    assert list(taken.others) == sequences[:2]
    assert isinstance(first, OrcdError) and first.code == "INTERNAL" and "secret" not in first.message
    assert isinstance(second, InvalidRequest)
    assert third == Draw(4, None)
    assert CLOSE not in sequences[2].constraint.token_ids


def test_what_is_reported_of_a_prompt_stays_beside_the_token_that_was_put_in_its_place() -> None:
    logprobs = record(TokenLogprobs(-1.0, (), ()), 0)
    reported = [PromptReport(logprobs, rest) for rest in (Draw(8, None), 8, None)]
    assert take([constrained(BracketConstraint(100), 1) for _ in reported], reported).results == [
        PromptReport(logprobs, Draw(2, None)),
        PromptReport(logprobs, Draw(2, None)),
        PromptReport(logprobs, None),
    ]
