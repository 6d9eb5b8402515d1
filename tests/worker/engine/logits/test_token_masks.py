from __future__ import annotations

import numpy as np
import pytest

from orcd.errors import InvalidRequest
from tests.worker.engine.bracket_constraint import BracketConstraint, FailingConstraint
from tests.worker.engine.generation import sequence
from worker.engine.logits.token_masks import constrained_rows, constraint_error, num_mask_words, write_masks
from worker.engine.sequence import Sequence
from worker.engine.token_constraint import MaskRow


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
        self.calls: list[list[MaskRow]] = []

    def write_masks(self, rows: list[MaskRow], masks: memoryview) -> dict[int, Exception]:
        self.calls.append(rows)
        array, errors = np.asarray(masks), {}
        for constraint, num_left, row in rows:
            array[row] = 0
            try:
                constraint.write_mask(array[row].data, num_left)
            except ValueError as error:
                errors[row] = error
        return errors


def constrained(constraint: BracketConstraint | None, **options: object) -> Sequence:
    each = sequence([1, 2, 3], [0], num_prompt=2, **options)
    each.constraint = constraint
    return each


def test_rows_are_those_of_sequences_with_a_constraint():
    assert constrained_rows([constrained(None), constrained(MarkedConstraint(1)), constrained(None)]) == [1]
    assert [num_mask_words(size) for size in (1, 32, 33, 96)] == [1, 1, 2, 3]


@pytest.mark.parametrize("batches", [[None], [MarkedBatch()], [MarkedBatch(), None, MarkedBatch()]])
@pytest.mark.parametrize("num_rows", [1, 15, 16, 100])
def test_each_row_gets_its_own_mask_whatever_was_there_before(num_rows: int, batches: list[MarkedBatch | None]):
    sequences = [
        constrained(MarkedConstraint(row, batches[row % len(batches)]) if row % 3 else None)
        for row in range(2 * num_rows)
    ]
    rows = constrained_rows(sequences)[:num_rows]
    masks = np.full((len(rows), 7), 0xFFFFFFFF, np.uint32)
    assert write_masks(sequences, rows, masks) == {}
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
    np.testing.assert_array_equal(bits.sum(axis=1), 1)
    assert bits.argmax(axis=1).tolist() == rows
    assert {sequences[row].constraint.asked for row in rows} == {(7, 7)}


def test_a_batch_is_asked_once_for_all_of_its_rows():
    batches = [MarkedBatch(), MarkedBatch()]
    sequences = [constrained(MarkedConstraint(row, batches[row % 2])) for row in range(10)]
    write_masks(sequences, range(10), np.empty((10, 1), np.uint32))
    assert [[[each.row for each in call] for call in batch.calls] for batch in batches] == [
        [[*range(start, 10, 2)]] for start in (0, 1)
    ]


def test_rows_of_a_batch_that_fail_or_have_nothing_left_allow_nothing():
    batch = MarkedBatch()
    failing = FailingConstraint("write_mask", error=ValueError("secret"))
    failing.batch = batch
    sequences = [
        constrained(failing),
        constrained(MarkedConstraint(9, batch), min_tokens=5, stop_token_ids=(9,)),
        constrained(MarkedConstraint(11, batch), min_tokens=5, stop_token_ids=(9,)),
    ]
    masks = np.empty((3, 1), np.uint32)
    errors = write_masks(sequences, [0, 1, 2], masks)
    assert sorted(errors) == [0, 1]
    assert all(error.code == "INTERNAL" and "secret" not in error.message for error in errors.values())
    assert masks[:, 0].tolist() == [0, 0, 1 << 11]


def test_rows_that_fail_have_an_error_and_allow_nothing():
    sequences = [
        constrained(FailingConstraint("write_mask")),
        constrained(FailingConstraint("write_mask", error=ValueError("secret"))),
        constrained(MarkedConstraint(9), min_tokens=5, stop_token_ids=(9,)),
        constrained(MarkedConstraint(9), min_tokens=1, stop_token_ids=(9,)),
    ]
    masks = np.empty((4, 1), np.uint32)
    errors = write_masks(sequences, [0, 1, 2, 3], masks)
    assert sorted(errors) == [0, 1, 2]
    assert all(error.code == "INTERNAL" and "secret" not in error.message for error in errors.values())
    assert masks[:, 0].tolist() == [0, 0, 0, 1 << 9]


def test_errors_with_a_code_stay_what_they_are():
    refused = InvalidRequest("no such thing")
    assert constraint_error(refused) is refused
