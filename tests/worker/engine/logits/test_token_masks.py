from __future__ import annotations

import numpy as np
import pytest

from orcd.errors import InvalidRequest, OrcdError
from tests.worker.engine.bracket_constraint import BracketConstraint, FailingConstraint
from tests.worker.engine.generation import sequence
from worker.engine.logits.token_masks import constrained_rows, constraint_error, masks_of, num_mask_words
from worker.engine.sequence import Sequence
from worker.engine.token_constraint import Asked, TokenMask


class MarkedConstraint(BracketConstraint):
    """Allows one id; keeps how many tokens were left, and the words of its mask."""

    def __init__(self, token_id: int, batch: MarkedBatch | None = None) -> None:
        super().__init__(1)
        self.token_id = token_id
        self.batch = batch

    def write_mask(self, mask: memoryview, num_left: int) -> None:
        self.asked = num_left, len(mask)
        mask[self.token_id // 32] = 1 << self.token_id % 32


class MarkedBatch:
    """Asks them one after the other."""

    def __init__(self) -> None:
        self.calls: list[list[int | None]] = []

    def masks(self, asked: list[Asked]) -> list[TokenMask | int | Exception]:
        self.calls.append([getattr(constraint, "token_id", None) for constraint, _ in asked])
        return [self._mask(*each) for each in asked]

    def _mask(self, constraint: MarkedConstraint, num_left: int) -> TokenMask | Exception:
        words = np.zeros(7, np.uint32)
        try:
            constraint.write_mask(words.data, num_left)
        except ValueError as error:
            return error
        return TokenMask(words.tobytes())


def ids_of(mask: TokenMask | int | OrcdError) -> list[int]:
    if isinstance(mask, int):
        return [mask]
    assert isinstance(mask, TokenMask), mask
    return np.flatnonzero(np.unpackbits(np.frombuffer(mask.words, np.uint8), bitorder="little")).tolist()


def constrained(constraint: BracketConstraint | None, **options: object) -> Sequence:
    each = sequence([1, 2, 3], [0], num_prompt=2, **options)
    each.constraint = constraint
    return each


def test_rows_are_those_of_sequences_with_a_constraint():
    assert constrained_rows([constrained(None), constrained(MarkedConstraint(1)), constrained(None)]) == [1]
    assert [num_mask_words(size) for size in (1, 32, 33, 96)] == [1, 1, 2, 3]


@pytest.mark.parametrize("batches", [[None], [MarkedBatch()], [MarkedBatch(), None, MarkedBatch()]])
@pytest.mark.parametrize("num_rows", [1, 15, 16, 100])
def test_each_sequence_gets_its_own_mask(num_rows: int, batches: list[MarkedBatch | None]):
    sequences = [constrained(MarkedConstraint(row, batches[row % len(batches)])) for row in range(num_rows)]
    assert [ids_of(mask) for mask in masks_of(sequences, 7)] == [[row] for row in range(num_rows)]
    assert {each.constraint.asked for each in sequences} == {(7, 7)}


def test_a_batch_is_asked_once_for_all_of_its_rows():
    batches = [MarkedBatch(), MarkedBatch()]
    sequences = [constrained(MarkedConstraint(row, batches[row % 2])) for row in range(10)]
    masks_of(sequences, 7)
    assert [batch.calls for batch in batches] == [[[*range(start, 10, 2)]] for start in (0, 1)]


def test_those_of_a_batch_that_fail_or_have_nothing_left_have_an_error():
    batch = MarkedBatch()
    failing = FailingConstraint("write_mask", error=ValueError("secret"))
    failing.batch = batch
    sequences = [
        constrained(failing),
        constrained(MarkedConstraint(9, batch), min_tokens=5, stop_token_ids=(9,)),
        constrained(MarkedConstraint(11, batch), min_tokens=5, stop_token_ids=(9,)),
    ]
    *errors, mask = masks_of(sequences, 7)
    assert all(error.code == "INTERNAL" and "secret" not in error.message for error in errors)
    assert ids_of(mask) == [11]


def test_of_one_id_that_alone_may_come_nothing_is_left_where_it_would_end_the_answer_too_soon():
    batch = MarkedBatch()
    batch.masks = lambda asked: [constraint.token_id for constraint, _ in asked]
    sequences = [
        constrained(MarkedConstraint(token_id, batch), min_tokens=5, stop_token_ids=(9,)) for token_id in (9, 11)
    ]
    error, mask = masks_of(sequences, 7)
    assert isinstance(error, OrcdError) and mask == 11


def test_those_that_fail_have_an_error():
    sequences = [
        constrained(FailingConstraint("write_mask")),
        constrained(FailingConstraint("write_mask", error=ValueError("secret"))),
        constrained(MarkedConstraint(9), min_tokens=5, stop_token_ids=(9,)),
        constrained(MarkedConstraint(9), min_tokens=1, stop_token_ids=(9,)),
    ]
    *errors, mask = masks_of(sequences, 1)
    assert all(error.code == "INTERNAL" and "secret" not in error.message for error in errors)
    assert ids_of(mask) == [9]


def test_errors_with_a_code_stay_what_they_are():
    refused = InvalidRequest("no such thing")
    assert constraint_error(refused) is refused
