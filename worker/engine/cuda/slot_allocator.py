"""Which sequence decodes in which slot on the device, and what the device must be told before the next decode step.

A slot is a row of `kernels.batch.DecodeRows`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

from kernels.batch import Patch, empty_patch
from worker.engine.batch_builder import draw_key
from worker.engine.scheduler import Chunk
from worker.engine.sequence import Sequence


@dataclass(slots=True, eq=False)
class Changes:
    """What `kernels.batch.write_changes` takes."""

    patches: dict[int, bytes] = field(default_factory=dict)  # by row
    entries: list[int] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.patches or self.entries)


class SlotAllocator:
    """The host's picture of `kernels.batch.DecodeRows`; a new one empties all rows first.

    A sequence keeps its row as long as it decodes in every step, and then nothing is sent for it but new blocks.
    """

    def __init__(self, num_rows: int, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._rows: dict[Sequence, int] = {}
        self._free_rows = list(range(num_rows))  # a heap
        self._tables: list[list[int]] = [[] for _ in range(num_rows)]  # the very list that was sent, see `allocate`
        self._num_sent = [0] * num_rows  # blocks of it
        self._draws: Mapping[Sequence, int] | None = {}  # see `interrupt`
        self._is_new = True

    def row_of_draw(self, sequence: Sequence) -> int:
        """Where the previous step drew the token of a sequence that is not known yet."""
        return (self._rows if self._draws is None else self._draws)[sequence]

    def interrupt(self, draws: Mapping[Sequence, int]) -> None:
        """A step of another kind runs, which drew ``draws``: what the rows say of their sequences is out of date."""
        self._draws = draws

    def allocate(self, chunks: list[Chunk], num_rows: int) -> tuple[list[int], Changes]:
        """The row of each chunk, below ``num_rows``, and what to send before their next token is computed.

        A table is told from one that the same sequence got after a preemption by being the same list.
        """
        changes = Changes()
        if self._is_new:
            changes.patches = {row: empty_patch(row) for row in self._free_rows}
            self._is_new = False
        assigned, tables, num_sent = self._rows, self._tables, self._num_sent
        is_current = self._draws is None
        rows: list[int] = []
        misplaced: list[int] = []
        for index, (sequence, _, _) in enumerate(chunks):
            row = assigned.get(sequence, -1)
            rows.append(row)
            if not (is_current and 0 <= row < num_rows and tables[row] is sequence.block_ids):
                misplaced.append(index)
            elif num_sent[row] != len(sequence.block_ids):
                self._send_blocks(sequence, row, changes)
        if misplaced or len(assigned) != len(chunks):
            self._rearrange(chunks, rows, misplaced, num_rows, changes)
        self._draws = None
        return rows, changes

    def _rearrange(
        self, chunks: list[Chunk], rows: list[int], misplaced: list[int], num_rows: int, changes: Changes
    ) -> None:
        token_ids = {index: self._next_token(chunks[index].sequence) for index in misplaced}
        present = {chunk.sequence for chunk in chunks}
        for sequence in [sequence for sequence in self._rows if sequence not in present]:
            self._free(sequence, changes)
        for index in misplaced:
            if rows[index] >= num_rows:
                self._free(chunks[index].sequence, changes)
                rows[index] = -1
        for index in misplaced:
            sequence = chunks[index].sequence
            row = rows[index]
            if row < 0:
                row = rows[index] = self._rows[sequence] = heappop(self._free_rows)
                assert row < num_rows, "fewer rows than sequences"
            if self._tables[row] is not sequence.block_ids:
                self._tables[row] = sequence.block_ids
                self._num_sent[row] = 0
            changes.patches[row] = self._patch(sequence, row, token_ids[index])
            self._send_blocks(sequence, row, changes)

    def _free(self, sequence: Sequence, changes: Changes) -> None:
        row = self._rows.pop(sequence)
        heappush(self._free_rows, row)
        self._tables[row] = []
        changes.patches[row] = empty_patch(row)

    def _next_token(self, sequence: Sequence) -> int:
        return -1 - self.row_of_draw(sequence) if sequence.num_unread else sequence.token_ids[-1]

    def _patch(self, sequence: Sequence, row: int, token_id: int) -> bytes:
        options = sequence.sampling
        return Patch(
            key=draw_key(sequence),
            output_position=sequence.num_output,
            row=row,
            token_id=token_id,
            position=sequence.num_computed,
            top_k=options.top_k,
            temperature=options.temperature,
            top_p=options.top_p,
            min_p=options.min_p,
        ).pack()

    def _send_blocks(self, sequence: Sequence, row: int, changes: Changes) -> None:
        block_ids = sequence.block_ids[self._num_sent[row] :]
        start = row * self._max_blocks + self._num_sent[row]
        changes.entries += range(start, start + len(block_ids))
        changes.block_ids += block_ids
        self._num_sent[row] = len(sequence.block_ids)

    def check_invariants(self) -> None:
        """Every row is either free or somebody's, and everybody has one."""
        taken = list(self._rows.values())
        assert sorted(taken + self._free_rows) == list(range(len(self._tables)))
