"""Which sequence has which row of what edits logits, and what such a row begins with."""

from __future__ import annotations

from collections.abc import Iterable

from kernels.logit_edits import SHORT_PROMPT, EditResetList, count_tokens
from worker.engine.sequence import Sequence

MAX_BIASES = 5120
"""Biases, bad words of one token and stop ids of a request together."""


def max_reset_entries(vocab_size: int) -> int:
    """Counts and biases that go to the device at a time: those of any row, or of many short prompts."""
    return max(vocab_size, SHORT_PROMPT) + MAX_BIASES


class EditRows:
    """The host's copy of whose the rows of `kernels.batch.LogitEdits` are; a new one has given out none.

    A sequence keeps its row while it runs, whatever kinds of step draw for it: the device counts what it draws.
    """

    def __init__(self, num_rows: int, vocab_size: int) -> None:
        """``num_rows``: as many as sequences may run."""
        self._max_entries = max_reset_entries(vocab_size)
        self._free_rows = list(range(num_rows))
        self._assigned: dict[Sequence, tuple[int, int]] = {}  # its row, and the revision with which the row began
        self._resets: list[EditResetList] = []

    def row_of(self, sequence: Sequence) -> int:
        """The row of a sequence, -1 if it has none."""
        return self._assigned[sequence][0] if sequence.is_edited else -1

    def assign(self, sequences: Iterable[Sequence]) -> None:
        """Give each whose logits are edited a row, begun with the tokens that it has: the host must know them all."""
        for sequence in sequences:
            if not sequence.is_edited:
                continue
            assigned = self._assigned.get(sequence)
            if assigned is not None and assigned[1] == sequence.revision:
                continue
            assert not sequence.num_unread, "counts of tokens that only the device knows"
            row = self._take_row() if assigned is None else assigned[0]
            self._assigned[sequence] = row, sequence.revision
            self._reset(row, sequence)

    def take_resets(self) -> list[EditResetList]:
        """What rows that were given out since the last call begin with, in lists that fit the device."""
        resets, self._resets = self._resets, []
        return resets

    def _take_row(self) -> int:
        if not self._free_rows:
            for sequence in [each for each in self._assigned if self._is_done(each)]:
                self._free_rows.append(self._assigned.pop(sequence)[0])
        return self._free_rows.pop()

    @staticmethod
    def _is_done(sequence: Sequence) -> bool:
        """Whether no step that is launched from now on draws for it, until it is begun anew."""
        return sequence.finish_reason is not None or not sequence.is_running or sequence.ends_with_draw

    def _reset(self, row: int, sequence: Sequence) -> None:
        options = sequence.sampling
        token_ids = sequence.token_ids if sequence.is_penalised else []
        counts = count_tokens(token_ids[: sequence.num_prompt], token_ids[sequence.num_prompt :])
        biases, banned = sequence.biases, options.stop_token_ids if options.min_tokens else ()
        num_entries = counts.size + len(biases) + len(banned)
        if not self._resets or self._resets[-1].num_entries + num_entries > self._max_entries:
            self._resets.append(EditResetList())
        self._resets[-1].put(row, counts, biases, banned)
