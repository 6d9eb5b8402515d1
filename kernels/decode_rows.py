"""What stays on the device of sequences that decode, and the updates that the host sends of it.

Between two decode steps a row goes on by itself, with the token that it drew. The host only says who came, who left,
and which blocks are new (`write_updates`); the op `begin_decode` applies that.
"""

from __future__ import annotations

from typing import Generic

import msgspec
import numpy as np
from numpy.typing import NDArray

from kernels.batch import (
    GREEDY_ROW,
    SAMPLING_ROW,
    Allocator,
    Array,
    LogitEdits,
    PreviousDraw,
    SamplingParams,
    StateRows,
    Step,
    encode_token,
    first,
    struct_dtype,
)
from kernels.runtime.cuda_struct import CudaStruct, Int32, Int64

EMPTY_ROW = -1
"""The position of a row that holds no sequence."""
NO_STATE = -1, -1
"""Slot and source of the state of a row that holds no sequence, and of all rows without recurrent layers."""


class RowUpdate(CudaStruct, source="decode_step/decode_step"):
    """How a row of `DecodeRows` goes on, where that is not "with the token it drew"; a `SamplingRow` comes after it."""

    output_position: Int64
    row: Int32
    token: Int32  # see `encode_token`
    position: Int32  # of the token in its sequence, or EMPTY_ROW
    state_slot: Int32  # -1: the model has no recurrent layers
    state_source: Int32  # see `kernels.batch.StateRows`; later the slot is the source


class BlockUpdate(CudaStruct, source="decode_step/decode_step"):
    """A new entry of the block tables."""

    entry: Int32  # its index in the tables, seen as one dimension
    block_id: Int32


class UpdateCounts(CudaStruct, source="decode_step/decode_step"):
    """What updates begin with: how many follow."""

    num_rows: Int32
    num_blocks: Int32


ROW_UPDATE = np.dtype([("update", struct_dtype(RowUpdate)), ("sampling", SAMPLING_ROW)])
BLOCK_UPDATE = struct_dtype(BlockUpdate)
UPDATE_COUNTS = struct_dtype(UpdateCounts)


class DecodeRows(msgspec.Struct, Generic[Array], frozen=True, eq=False):
    """What is on the device of up to ``N`` sequences that decode: each has a row, and empty rows lie between them."""

    token_ids: Array  # [N] int32, like all but `sampling` and `updates`
    positions: Array  # [N] of the tokens, or EMPTY_ROW
    slots: Array  # [N] KV slots
    context_lengths: Array  # [N]
    sequence_lengths: Array  # [N]
    block_tables: Array  # [N, max_blocks]
    drawn: Array  # [N] ids that the last step drew, of any kind of step; -1 where logits were not finite
    counting: Array  # [N + 1] 0, 1, 2 ...
    sampling: SamplingParams[Array]  # [N]
    updates: Array  # bytes: UPDATE_COUNTS, then ROW_UPDATEs, then BLOCK_UPDATEs
    states: StateRows[Array] | None = None  # [N] each; None: the model has no recurrent layers

    def step(self, num_rows: int) -> Step[Array]:
        """The first ``num_rows`` rows as a step."""
        return Step(
            token_ids=first(self.token_ids, num_rows),
            positions=first(self.positions, num_rows),
            slots=first(self.slots, num_rows),
            sequence_rows=first(self.counting, num_rows),
            query_starts=first(self.counting, num_rows + 1),
            context_lengths=first(self.context_lengths, num_rows),
            sequence_lengths=first(self.sequence_lengths, num_rows),
            block_tables=first(self.block_tables, num_rows),
            logit_rows=first(self.counting, num_rows),
            states=None if self.states is None else self.states.first(num_rows),
        )


def allocate_rows(
    memory: Allocator[Array],
    num_rows: int,
    max_blocks: int,
    edits: LogitEdits[Array] | None = None,
    *,
    has_states: bool = False,
) -> DecodeRows[Array]:
    """Rows for ``num_rows`` sequences of at most ``max_blocks`` blocks, with states or without.

    Before use ``counting`` must be filled in, and every row be emptied (`RowUpdates.empty`).
    """

    def ints(*shape: int) -> Array:
        return memory.allocate(shape, np.int32)

    updates_bytes = UPDATE_COUNTS.itemsize + num_rows * (ROW_UPDATE.itemsize + max_blocks * BLOCK_UPDATE.itemsize)
    return DecodeRows(
        token_ids=ints(num_rows),
        positions=ints(num_rows),
        slots=ints(num_rows),
        context_lengths=ints(num_rows),
        sequence_lengths=ints(num_rows),
        block_tables=ints(num_rows, max_blocks),
        drawn=ints(num_rows),
        counting=ints(num_rows + 1),
        sampling=SamplingParams(
            rows=memory.allocate((num_rows,), SAMPLING_ROW),
            output_positions=memory.allocate((num_rows,), np.int64),
            edits=edits,
        ),
        updates=memory.allocate((updates_bytes,), np.uint8),
        states=StateRows(ints(num_rows), ints(num_rows)) if has_states else None,
    )


class RowUpdates(msgspec.Struct, eq=False):
    """What the host has to say before a decode step: at most one `RowUpdate` a row, and each `BlockUpdate` once."""

    rows: dict[int, bytes] = {}  # by row: a RowUpdate and a SamplingRow
    block_entries: list[int] = []
    block_ids: list[int] = []

    def __bool__(self) -> bool:
        return bool(self.rows or self.block_entries)

    def put(
        self,
        row: int,
        token: int | PreviousDraw,
        *,
        position: int,
        output_position: int,
        sampling_row: bytes,
        state: tuple[int, int] = NO_STATE,
    ) -> None:
        """``row`` goes on with ``token``, a `SamplingRow`, and the slot and source of its ``state``."""
        slot, source = state
        update = RowUpdate(
            output_position=output_position,
            row=row,
            token=encode_token(token),
            position=position,
            state_slot=slot,
            state_source=source,
        )
        self.rows[row] = update + sampling_row

    def empty(self, row: int) -> None:
        """``row`` is nobody's from now on."""
        self.put(row, 0, position=EMPTY_ROW, output_position=0, sampling_row=GREEDY_ROW)  # it costs least


def write_updates(updates: RowUpdates, staging: NDArray[np.uint8]) -> int:
    """Write ``updates`` as the op `begin_decode` reads them into ``staging``; returns the number of bytes."""
    num_rows, num_blocks = len(updates.rows), len(updates.block_entries)
    blocks_start = UPDATE_COUNTS.itemsize + num_rows * ROW_UPDATE.itemsize
    end = blocks_start + num_blocks * BLOCK_UPDATE.itemsize
    head = UpdateCounts(num_rows=num_rows, num_blocks=num_blocks)
    staging[:blocks_start] = np.frombuffer(b"".join((head, *updates.rows.values())), np.uint8)
    blocks = staging[blocks_start:end].view(np.int32).reshape(-1, 2)
    blocks[:, 0] = updates.block_entries
    blocks[:, 1] = updates.block_ids
    return end
