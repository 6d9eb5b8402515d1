"""What turns one step into the next one without the host."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.batch import COUNTS_BYTES, PATCH, UPDATE, DecodeRows

Int32 = NDArray[np.int32]


def begin_decode(rows: DecodeRows, num_rows: int, block_tokens: int) -> None:
    """Make the first ``num_rows`` rows the next step.

    Rows that hold a sequence go on with the id they drew (an id of -1 counts as 0), then patches and updates of
    ``changes`` are applied, to any row, and forgotten, then slots of ``block_tokens`` a block are found.
    """
    counts = rows.changes[:COUNTS_BYTES].view(np.int32)
    num_patches, num_updates = counts[:2].tolist()
    updates_start = COUNTS_BYTES + num_patches * PATCH.itemsize
    patches = rows.changes[COUNTS_BYTES:updates_start].view(PATCH)
    updates = rows.changes[updates_start : updates_start + num_updates * UPDATE.itemsize].view(UPDATE)

    live = np.flatnonzero(rows.positions[:num_rows] >= 0)
    rows.token_ids[live] = np.maximum(rows.drawn[live], 0)
    for array in (rows.positions, rows.context_lengths, rows.sequence_lengths, rows.draws.output_positions):
        array[live] += 1

    rows.block_tables.reshape(-1)[updates["entry"]] = updates["block_id"]
    row = patches["row"]
    rows.token_ids[row] = patches["token_id"]
    resolve_tokens(rows.token_ids, rows.drawn)
    rows.positions[row] = patches["position"]
    rows.context_lengths[row] = rows.sequence_lengths[row] = patches["position"] + 1
    rows.draws.output_positions[row] = patches["output_position"]
    rows.draws.keys[row] = patches["key"]
    for name in ("temperature", "top_k", "top_p", "min_p"):
        getattr(rows.draws, name)[row] = patches[name]
    counts[:2] = 0

    positions = rows.positions[:num_rows]
    block_ids = rows.block_tables[np.arange(num_rows), np.maximum(positions, 0) // block_tokens]
    rows.slots[:num_rows] = np.where(positions < 0, -1, block_ids * block_tokens + positions % block_tokens)


def resolve_tokens(token_ids: Int32, drawn: Int32) -> None:
    """In ``token_ids`` [T], -1 - i becomes the id of draw i of the previous step, in ``drawn`` [N].

    An id of -1 there counts as 0.
    """
    unknown = np.flatnonzero(token_ids < 0)
    token_ids[unknown] = np.maximum(drawn[-1 - token_ids[unknown]], 0)
