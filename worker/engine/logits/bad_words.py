"""Token ids that may not follow each other in an answer, as a constraint."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np

from orcd.errors import OrcdError
from worker.engine.token_constraint import TokenConstraint

Word = tuple[int, ...]


class BadWords:
    """Bans the last id of a word where the output ends with those before it, and keeps to a grammar, if there is one.

    What is in the prompt does not count. It is a `worker.engine.token_constraint.TokenConstraint`.
    """

    def __init__(self, words: Sequence[Word], grammar: TokenConstraint | None, *, vocab_size: int) -> None:
        """``words`` are one id or more each."""
        self._endings = [(word[:-1], word[-1]) for word in words]
        self._num_kept = max(1, *(len(before) for before, _ in self._endings))
        self._grammar = grammar
        self._every_id = np.packbits(np.ones(vocab_size, np.bool_), bitorder="little").tobytes()
        self._last_ids: Word = ()  # of the output, as many as a word looks back at

    def copy(self) -> BadWords:
        """The same words after the same output, which then goes its own way."""
        other = copy(self)
        other._grammar = None if self._grammar is None else self._grammar.copy()
        return other

    @property
    def batch(self) -> None:
        """None: it is asked alone."""

    @property
    def is_complete(self) -> bool:
        """Whether the grammar's document is."""
        return self._grammar is not None and self._grammar.is_complete

    def write_mask(self, mask: memoryview, num_left: int) -> None:
        """What the grammar allows of the next token, or any id, without those that would end a word."""
        if self._grammar is None:
            mask.cast("B")[: len(self._every_id)] = self._every_id
        else:
            self._grammar.write_mask(mask, num_left)
        for token_id in self._banned_ids():
            mask[token_id // 32] &= ~(1 << token_id % 32)

    def forced_id(self, num_left: int) -> int | None:
        """What the grammar forces, unless it would end a word."""
        token_id = None if self._grammar is None else self._grammar.forced_id(num_left)
        return None if token_id in self._banned_ids() else token_id

    def take(self, token_id: int, num_left: int) -> int:
        """Take a token; the grammar may put another in its place. Raises `OrcdError` where that would end a word."""
        taken_id = token_id
        if self._grammar is not None:
            taken_id = self._grammar.take(token_id, num_left)
            if taken_id in self._banned_ids():
                raise OrcdError("the grammar of this request can only be kept to with what its bad_words forbid")
        self._append(taken_id)
        return taken_id

    def restore(self, token_ids: Sequence[int], num_left: int) -> None:
        """Take the ids of an earlier owner."""
        if self._grammar is not None:
            self._grammar.restore(token_ids, num_left)
        for token_id in token_ids:
            self._append(token_id)

    def _banned_ids(self) -> set[int]:
        last_ids = self._last_ids
        return {last for before, last in self._endings if not before or last_ids[-len(before) :] == before}

    def _append(self, token_id: int) -> None:
        self._last_ids = (*self._last_ids, token_id)[-self._num_kept :]
