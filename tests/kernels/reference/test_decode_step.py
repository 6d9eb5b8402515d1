"""kernels.reference.decode_step: rows that decode go on by themselves, and the host's updates are applied to them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from kernels.batch import SAMPLING_ROW, PreviousDraw, encode_token
from kernels.decode_rows import EMPTY_ROW, DecodeRows, RowUpdates, allocate_rows, write_updates
from kernels.reference.decode_step import begin_decode, resolve_tokens

NUM_ROWS, MAX_BLOCKS, BLOCK_TOKENS = 4, 3, 8
SAMPLING = bytes(range(SAMPLING_ROW.itemsize))


@pytest.fixture
def rows() -> DecodeRows:
    """Rows of which none holds a sequence."""
    rows = allocate_rows(SimpleNamespace(allocate=np.zeros), NUM_ROWS, MAX_BLOCKS)
    rows.positions[:] = EMPTY_ROW
    return rows


def begin(rows: DecodeRows, updates: RowUpdates) -> None:
    write_updates(updates, rows.updates)
    begin_decode(rows, NUM_ROWS, BLOCK_TOKENS)


def test_a_row_begins_with_what_the_host_says_and_goes_on_with_what_it_drew(rows: DecodeRows) -> None:
    updates = RowUpdates(block_entries=[MAX_BLOCKS + 1], block_ids=[6])
    updates.put(1, 42, position=14, output_position=3, sampling_row=SAMPLING)
    assert updates
    begin(rows, updates)
    assert (rows.token_ids[1], rows.context_lengths[1], rows.sequence_lengths[1]) == (42, 15, 15)
    assert rows.slots.tolist() == [-1, 6 * BLOCK_TOKENS + 6, -1, -1]
    assert rows.sampling.rows[1] == np.frombuffer(SAMPLING, SAMPLING_ROW)[0]
    assert rows.sampling.output_positions[1] == 3
    rows.drawn[1] = 5
    begin_decode(rows, NUM_ROWS, BLOCK_TOKENS)
    assert (rows.token_ids[1], rows.positions[1], rows.sampling.output_positions[1]) == (5, 15, 4)
    assert rows.sampling.rows[1] == np.frombuffer(SAMPLING, SAMPLING_ROW)[0]
    assert rows.positions[[0, 2, 3]].tolist() == [EMPTY_ROW] * 3


def test_a_row_goes_on_with_what_another_one_drew(rows: DecodeRows) -> None:
    rows.drawn[:] = [11, 12, -1, 14]
    updates = RowUpdates()
    updates.put(0, PreviousDraw(3), position=0, output_position=0, sampling_row=SAMPLING)
    updates.put(1, PreviousDraw(2), position=0, output_position=0, sampling_row=SAMPLING)  # its logits were not finite
    begin(rows, updates)
    assert rows.token_ids[:2].tolist() == [14, 0]


def test_a_row_that_is_emptied_stays_as_it_is(rows: DecodeRows) -> None:
    updates = RowUpdates()
    updates.put(2, 4, position=0, output_position=0, sampling_row=SAMPLING)
    begin(rows, updates)
    updates.empty(2)
    begin(rows, updates)
    begin_decode(rows, NUM_ROWS, BLOCK_TOKENS)
    assert (rows.positions[2], rows.context_lengths[2], rows.slots[2]) == (EMPTY_ROW, 0, -1)
    assert rows.sampling.rows["temperature"][2] == 0


def test_rows_beyond_those_of_the_step_stay_as_they_are(rows: DecodeRows) -> None:
    updates = RowUpdates()
    for row in range(NUM_ROWS):
        updates.put(row, row, position=5, output_position=0, sampling_row=SAMPLING)
    begin(rows, updates)
    rows.drawn[:] = 9
    begin_decode(rows, 2, BLOCK_TOKENS)
    assert rows.positions.tolist() == [6, 6, 5, 5]
    assert rows.token_ids.tolist() == [9, 9, 2, 3]


def test_tokens_that_the_last_step_drew_become_their_ids_and_others_stay() -> None:
    token_ids = np.array([5, encode_token(PreviousDraw(2)), 0, encode_token(PreviousDraw(0))], np.int32)
    resolve_tokens(token_ids, np.array([30, 31, 32], np.int32))
    assert token_ids.tolist() == [5, 32, 0, 30]


def test_a_draw_from_logits_that_were_not_finite_counts_as_token_0() -> None:
    token_ids = np.array([encode_token(PreviousDraw(1))], np.int32)
    resolve_tokens(token_ids, np.array([30, -1], np.int32))
    assert token_ids.tolist() == [0]
