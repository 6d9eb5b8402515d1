"""What turns one step into the next one, or into that of some of its tokens, without the host."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.batch import Step, decode_draw
from kernels.decode_rows import BLOCK_UPDATE, EMPTY_ROW, ROW_UPDATE, UPDATE_COUNTS, DecodeRows

Int32 = NDArray[np.int32]


def begin_decode(rows: DecodeRows[NDArray[Any]], num_rows: int, block_tokens: int) -> None:
    """Make the first ``num_rows`` rows the next step.

    Rows that hold a sequence go on with the id they drew (an id of -1 counts as 0) and with their own state, then
    ``updates`` are applied, to any row, and forgotten, then KV slots of ``block_tokens`` a block are found.
    """
    counts = rows.updates[: UPDATE_COUNTS.itemsize].view(UPDATE_COUNTS)[0]
    blocks_start = UPDATE_COUNTS.itemsize + counts["num_rows"] * ROW_UPDATE.itemsize
    blocks_end = blocks_start + counts["num_blocks"] * BLOCK_UPDATE.itemsize
    row_updates = rows.updates[UPDATE_COUNTS.itemsize : blocks_start].view(ROW_UPDATE)
    block_updates = rows.updates[blocks_start:blocks_end].view(BLOCK_UPDATE)

    live = np.flatnonzero(rows.positions[:num_rows] != EMPTY_ROW)
    rows.token_ids[live] = np.maximum(rows.drawn[live], 0)
    for array in (rows.positions, rows.context_lengths, rows.sequence_lengths, rows.sampling.output_positions):
        array[live] += 1

    if rows.states is not None:
        rows.states.sources[live] = rows.states.slots[live]

    rows.block_tables.reshape(-1)[block_updates["entry"]] = block_updates["block_id"]
    update = row_updates["update"]
    row = update["row"]
    rows.token_ids[row] = update["token"]
    resolve_tokens(rows.token_ids, rows.drawn)
    rows.positions[row] = update["position"]
    rows.context_lengths[row] = rows.sequence_lengths[row] = update["position"] + 1
    rows.sampling.output_positions[row] = update["output_position"]
    rows.sampling.rows[row] = row_updates["sampling"]
    if rows.states is not None:
        rows.states.slots[row], rows.states.sources[row] = update["state_slot"], update["state_source"]
    counts["num_rows"] = counts["num_blocks"] = 0

    rows.slots[:num_rows] = _slots(rows.positions[:num_rows], rows.block_tables, block_tokens)


def continue_rows(step: Step[NDArray[Any]], block_tokens: int) -> None:
    """Make ``step`` the next one, as `begin_decode` does where there are no updates; it has `output_positions`."""
    greedy, live = step.greedy, np.flatnonzero(step.positions != EMPTY_ROW)
    assert greedy is not None and greedy.output_positions is not None
    step.token_ids[live] = np.maximum(greedy.ids[live], 0)
    for array in (step.positions, step.context_lengths, step.sequence_lengths, greedy.output_positions):
        array[live] += 1
    step.slots[:] = _slots(step.positions, step.block_tables, block_tokens)


def _slots(positions: Int32, block_tables: Int32, block_tokens: int) -> NDArray[Any]:
    """The KV slots of positions of rows, -1 of those without a sequence."""
    block_ids = block_tables[np.arange(positions.size), np.maximum(positions, 0) // block_tokens]
    return np.where(positions < 0, -1, block_ids * block_tokens + positions % block_tokens)


def resolve_tokens(token_ids: Int32, drawn: Int32) -> None:
    """What `kernels.batch.encode_token` made of draws of the previous step becomes their ids.

    ``token_ids`` [T], ``drawn`` [N] ids of the previous step, of which -1 counts as 0.
    """
    unknown = np.flatnonzero(token_ids < 0)
    token_ids[unknown] = np.maximum(drawn[decode_draw(token_ids[unknown])], 0)


def select_step(step: Step[Int32]) -> Step[Int32]:
    """The step of the tokens in ``step.logit_rows``: a sequence for each, of those that the cache holds."""
    rows = step.logit_rows
    sequences, counting = step.sequence_rows[rows], np.arange(rows.size + 1, dtype=np.int32)
    return Step(
        token_ids=step.token_ids[rows],
        positions=step.positions[rows],
        slots=step.slots[rows],
        sequence_rows=counting[:-1],
        query_starts=counting,
        context_lengths=step.positions[rows] + 1,
        sequence_lengths=step.sequence_lengths[sequences],
        block_tables=step.block_tables[sequences],
        logit_rows=counting[:-1],
    )


def select_rows(x: NDArray[Any], rows: Int32, num_columns: int) -> NDArray[Any]:
    """The first ``num_columns`` of some ``rows`` [R] of ``x`` [T, W], as a new array."""
    selected: NDArray[Any] = x[rows, :num_columns]
    return selected
