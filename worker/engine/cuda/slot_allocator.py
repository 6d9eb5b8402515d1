"""Which sequence decodes in which batch slot, and what the device must be told before the next decode step.

A batch slot is a row of the arrays of `kernels.decode_rows.DecodeRows`, and is called a row below. It has nothing to do
with the KV slots in these arrays, which are places of tokens in the KV cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from kernels.batch import PreviousDraw
from kernels.decode_rows import RowUpdates
from worker.engine.batch_builder import build_sampling_row, state_row
from worker.engine.logits.edit_rows import EditRows
from worker.engine.sequence import Chunk, Sequence


class SlotAllocator:
    """The host's copy of what is in `kernels.decode_rows.DecodeRows`; a new one empties all rows first.

    A sequence keeps its row as long as it decodes in every step, and then nothing is sent for it but new blocks.
    """

    def __init__(self, num_rows: int, max_blocks: int, block_tokens: int, edit_rows: EditRows) -> None:
        """``edit_rows`` is to be a new one, too: who gets a row here is given one there, if it needs one."""
        self._max_blocks = max_blocks
        self._block_tokens = block_tokens
        self._edit_rows = edit_rows
        self._rows: dict[Sequence, int] = {}
        self._free_rows = list(range(num_rows))  # a heap
        # For each row: which revision of its sequence was sent (None: none was), and how many of its blocks.
        self._revisions: list[int | None] = [None] * num_rows
        self._num_sent = [0] * num_rows
        self._steps_left = np.zeros(num_rows, np.int64)  # before the sent blocks are full
        self._rows_emptied = False
        self._rows_current = False
        """Whether the rows are what the last step ran with: then its draws are where the rows are."""
        self._whole_step_draws: Mapping[Sequence, int] = {}
        """Else, where the last step drew."""
        self._chunks: list[Chunk] = []
        """Those of the last decode step, and their rows."""
        self._chunk_rows = np.empty(0, np.intp)

    def previous_draw(self, sequence: Sequence) -> int:
        """The number of the draw of the previous step that gives a sequence's token that is not known yet."""
        return (self._rows if self._rows_current else self._whole_step_draws)[sequence]

    @property
    def mean_context(self) -> int:
        """About how many tokens a sequence has, counted in the blocks that are known of it."""
        return sum(self._num_sent) * self._block_tokens // max(1, len(self._rows))

    def interrupt(self, draws: Mapping[Sequence, int]) -> None:
        """A step of another kind runs, which drew ``draws``: what the rows say of their sequences is out of date."""
        self._rows_current = False
        self._whole_step_draws = draws

    def allocate(self, chunks: list[Chunk], num_rows: int) -> tuple[NDArray[np.intp], RowUpdates]:
        """The row of each chunk, below ``num_rows``, and what to send before their next token is computed.

        The same list as for the last step is of the same sequences, which have gone on by what they drew.
        """
        updates = RowUpdates()
        if not self._rows_emptied:
            for free_row in self._free_rows:
                updates.empty(free_row)
            self._rows_emptied = True
        if chunks is not self._chunks or not self._rows_current:
            self._place([sequence for sequence, _, _ in chunks], num_rows, updates)
            self._chunks = chunks
            self._chunk_rows = np.array([self._rows[sequence] for sequence, _, _ in chunks], np.intp)
            self._rows_current = True
        rows = self._chunk_rows
        for index in np.flatnonzero(self._steps_left[rows] == 0).tolist():
            self._send_blocks(chunks[index].sequence, int(rows[index]), updates)
        self._steps_left[rows] -= 1
        return rows, updates

    def _place(self, sequences: list[Sequence], num_rows: int, updates: RowUpdates) -> None:
        """See that these have rows, and no others."""
        assigned, revisions, is_current = self._rows, self._revisions, self._rows_current
        misplaced: list[Sequence] = []
        for sequence in sequences:
            row = assigned.get(sequence)
            if row is None or not is_current or row >= num_rows or revisions[row] != sequence.revision:
                misplaced.append(sequence)
            else:
                assert sequence.state_source == sequence.state_slot, (
                    "the device would read the state of the step before"
                )
        if misplaced or len(assigned) != len(sequences):
            self._rearrange(set(sequences), misplaced, num_rows, updates)

    def _rearrange(self, present: set[Sequence], misplaced: list[Sequence], num_rows: int, updates: RowUpdates) -> None:
        """Free the rows of sequences that are not ``present``, and give those that are ``misplaced`` theirs."""
        tokens = [self._next_token(sequence) for sequence in misplaced]  # looks at the rows of the last step
        self._edit_rows.assign(misplaced)
        for sequence in [sequence for sequence in self._rows if sequence not in present]:
            self._free(sequence, updates)
        for sequence in misplaced:
            row = self._rows.get(sequence)
            if row is not None and row >= num_rows:
                self._free(sequence, updates)
        for sequence, token in zip(misplaced, tokens, strict=True):
            row = self._rows.get(sequence)
            if row is None:
                row = self._rows[sequence] = heappop(self._free_rows)
                assert row < num_rows, "fewer rows than sequences"
            if self._revisions[row] != sequence.revision:
                self._revisions[row] = sequence.revision
                self._num_sent[row] = 0
            updates.put(
                row,
                token,
                position=sequence.num_computed,
                output_position=sequence.num_output,
                sampling_row=build_sampling_row(sequence, self._edit_rows.row_of(sequence)),
                state=state_row(sequence),
            )
            self._send_blocks(sequence, row, updates)

    def _free(self, sequence: Sequence, updates: RowUpdates) -> None:
        row = self._rows.pop(sequence)
        heappush(self._free_rows, row)
        self._revisions[row] = None
        self._num_sent[row] = 0
        updates.empty(row)

    def _next_token(self, sequence: Sequence) -> int | PreviousDraw:
        return PreviousDraw(self.previous_draw(sequence)) if sequence.num_unread else sequence.token_ids[-1]

    def _send_blocks(self, sequence: Sequence, row: int, updates: RowUpdates) -> None:
        block_ids = sequence.block_ids[self._num_sent[row] :]
        start = row * self._max_blocks + self._num_sent[row]
        updates.block_entries += range(start, start + len(block_ids))
        updates.block_ids += block_ids
        self._num_sent[row] = len(sequence.block_ids)
        self._steps_left[row] = self._num_sent[row] * self._block_tokens - sequence.num_computed

    def check_invariants(self) -> None:
        """Every row is either free or somebody's, and everybody has one."""
        taken = list(self._rows.values())
        assert sorted(taken + self._free_rows) == list(range(len(self._num_sent)))
