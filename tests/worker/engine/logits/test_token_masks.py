import threading

import numpy as np
import pytest

from orcd.errors import InvalidRequest
from tests.worker.engine.bracket_constraint import BracketConstraint, FailingConstraint
from tests.worker.engine.generation import sequence
from worker.engine.logits.token_masks import TokenMasks, constrained_rows, constraint_error, num_mask_words
from worker.engine.sequence import Sequence


class MarkedConstraint(BracketConstraint):
    """Allows one id; keeps which thread asked, and how many tokens were left."""

    def __init__(self, token_id: int) -> None:
        super().__init__(1)
        self.token_id = token_id

    def write_mask(self, mask: memoryview, num_left: int) -> None:
        self.asked = threading.get_ident(), num_left, len(mask)
        mask[self.token_id // 32] = 1 << self.token_id % 32


def constrained(constraint: BracketConstraint | None, **options: object) -> Sequence:
    each = sequence([1, 2, 3], [0], num_prompt=2, **options)
    each.constraint = constraint
    return each


def test_rows_are_those_of_sequences_with_a_constraint():
    assert constrained_rows([constrained(None), constrained(MarkedConstraint(1)), constrained(None)]) == [1]
    assert [num_mask_words(size) for size in (1, 32, 33, 96)] == [1, 1, 2, 3]


@pytest.mark.parametrize("num_cores", [None, 1, 2, 16, 64])
@pytest.mark.parametrize("num_rows", [1, 15, 16, 100])
def test_each_row_gets_its_own_mask_whatever_was_there_before(monkeypatch, num_rows: int, num_cores: int | None):
    monkeypatch.setattr("os.cpu_count", lambda: num_cores)
    sequences = [constrained(MarkedConstraint(row) if row % 3 else None) for row in range(2 * num_rows)]
    rows = constrained_rows(sequences)[:num_rows]
    masks = np.full((len(rows), 7), 0xFFFFFFFF, np.uint32)
    assert TokenMasks().write(sequences, rows, masks) == {}
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
    np.testing.assert_array_equal(bits.sum(axis=1), 1)
    assert bits.argmax(axis=1).tolist() == rows
    assert {sequences[row].constraint.asked[1:] for row in rows} == {(7, 7)}


def test_rows_that_fail_have_an_error_and_allow_nothing():
    sequences = [
        constrained(FailingConstraint("write_mask")),
        constrained(FailingConstraint("write_mask", error=ValueError("secret"))),
        constrained(MarkedConstraint(9), min_tokens=5, stop_token_ids=(9,)),
        constrained(MarkedConstraint(9), min_tokens=1, stop_token_ids=(9,)),
    ]
    masks = np.empty((4, 1), np.uint32)
    errors = TokenMasks().write(sequences, [0, 1, 2, 3], masks)
    assert sorted(errors) == [0, 1, 2]
    assert all(error.code == "INTERNAL" and "secret" not in error.message for error in errors.values())
    assert masks[:, 0].tolist() == [0, 0, 0, 1 << 9]


def test_errors_with_a_code_stay_what_they_are():
    refused = InvalidRequest("no such thing")
    assert constraint_error(refused) is refused
