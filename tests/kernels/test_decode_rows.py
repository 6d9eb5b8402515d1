"""What the host sends of rows that decode, and a step as views of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from kernels.batch import SAMPLING_ROW, PreviousDraw, decode_draw
from kernels.decode_rows import (
    BLOCK_UPDATE,
    EMPTY_ROW,
    ROW_UPDATE,
    UPDATE_COUNTS,
    DecodeRows,
    RowUpdates,
    allocate_rows,
    write_updates,
)

NUM_ROWS, MAX_BLOCKS = 4, 3
SAMPLING = bytes(range(SAMPLING_ROW.itemsize))


@pytest.fixture
def rows() -> DecodeRows:
    """Rows whose arrays are all zeros."""
    return allocate_rows(SimpleNamespace(allocate=np.zeros), NUM_ROWS, MAX_BLOCKS)


def test_updates_are_their_counts_then_the_rows_then_the_blocks(rows: DecodeRows) -> None:
    updates = RowUpdates(block_entries=[5, 7], block_ids=[50, 70])
    updates.put(3, PreviousDraw(8), position=14, output_position=2**40, sampling_row=SAMPLING)
    num_bytes = write_updates(updates, rows.updates)
    assert num_bytes == UPDATE_COUNTS.itemsize + ROW_UPDATE.itemsize + 2 * BLOCK_UPDATE.itemsize
    counts, row, blocks = np.split(rows.updates[:num_bytes], np.cumsum([UPDATE_COUNTS.itemsize, ROW_UPDATE.itemsize]))
    assert counts.view(UPDATE_COUNTS)[0].tolist() == (1, 2)
    [update] = row.view(ROW_UPDATE)
    assert [update["update"][name] for name in ("row", "position", "output_position")] == [3, 14, 2**40]
    assert decode_draw(update["update"]["token"]) == 8
    assert update["sampling"].tobytes() == SAMPLING
    assert blocks.view(BLOCK_UPDATE).tolist() == [(5, 50), (7, 70)]


def test_of_two_updates_of_a_row_the_later_one_counts(rows: DecodeRows) -> None:
    updates = RowUpdates()
    updates.put(1, 7, position=14, output_position=3, sampling_row=SAMPLING)
    updates.empty(1)
    end = write_updates(updates, rows.updates)
    [update] = rows.updates[UPDATE_COUNTS.itemsize : end].view(ROW_UPDATE)
    assert (update["update"]["row"], update["update"]["position"]) == (1, EMPTY_ROW)


def test_a_step_is_the_first_rows_where_they_are_each_a_sequence_of_one_token(rows: DecodeRows) -> None:
    rows.counting[:] = np.arange(NUM_ROWS + 1)
    step = rows.step(2)
    rows.token_ids[:] = [10, 11, 12, 13]
    assert step.token_ids.tolist() == [10, 11]
    assert step.block_tables.shape == (2, MAX_BLOCKS)
    assert step.query_starts.tolist() == [0, 1, 2]
    assert step.logit_rows.tolist() == step.sequence_rows.tolist() == [0, 1]


def test_the_largest_updates_fit(rows: DecodeRows) -> None:
    num_entries = NUM_ROWS * MAX_BLOCKS
    updates = RowUpdates(block_entries=list(range(num_entries)), block_ids=[1] * num_entries)
    for row in range(NUM_ROWS):
        updates.empty(row)
    assert write_updates(updates, rows.updates) == rows.updates.nbytes
    assert not RowUpdates()
