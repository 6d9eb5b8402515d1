"""Token ids that may not follow each other in an answer, as a constraint."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import cast

import msgspec
import numpy as np

from orcd.errors import OrcdError
from worker.engine.logits.token_masks import without
from worker.engine.token_constraint import Asked, ConstraintBatch, Drawn, TokenConstraint, TokenMask

Word = tuple[int, ...]


class BadWords:
    """Bans the last id of a word where the output ends with those before it, and keeps to a grammar, if there is one.

    What is in the prompt does not count. It is a `worker.engine.token_constraint.TokenConstraint`.
    """

    def __init__(self, words: Sequence[Word], grammar: TokenConstraint | None, *, vocab_size: int) -> None:
        """``words`` are one id or more each."""
        self._single_ids = {word[0] for word in words if len(word) == 1}
        self._longer: dict[int, list[tuple[Word, int]]] = {}  # by their last id but one: few may end at any place
        for word in words:
            if len(word) > 1:
                self._longer.setdefault(word[-2], []).append((word[:-1], word[-1]))
        self._num_kept = max(1, *(len(word) - 1 for word in words))
        self._grammar = grammar
        self._every_id = np.packbits(np.ones(vocab_size, np.bool_), bitorder="little").tobytes()
        self._last_ids: Word = ()  # of the output, as many as a word looks back at

    def copy(self) -> BadWords:
        """The same words after the same output, which then goes its own way."""
        other = copy(self)
        other._grammar = None if self._grammar is None else self._grammar.copy()
        return other

    @property
    def batch(self) -> ConstraintBatch | None:
        """What asks its grammar together with others; None: it is asked alone, which takes a moment without one."""
        batch = None if self._grammar is None else self._grammar.batch
        return None if batch is None else BadWordsBatch(batch)

    @property
    def grammar(self) -> TokenConstraint:
        """The grammar, where there is one."""
        assert self._grammar is not None, "bad words without a grammar"
        return self._grammar

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

    def without_banned(self, mask: TokenMask | int) -> TokenMask | int | OrcdError:
        """What is left of ``mask``, or of an id that is the only one, without those that would end a word."""
        banned_ids = self._banned_ids()
        return without(mask, banned_ids) if banned_ids else mask

    def forced_id(self, num_left: int) -> int | None:
        """What the grammar forces, unless it would end a word."""
        token_id = None if self._grammar is None else self._grammar.forced_id(num_left)
        return None if token_id in self._banned_ids() else token_id

    def take(self, token_id: int, num_left: int) -> int:
        """Take a token; the grammar may put another in its place. Raises `OrcdError` where that would end a word."""
        return self.settle(token_id if self._grammar is None else self._grammar.take(token_id, num_left))

    def settle(self, token_id: int) -> int:
        """Behind a token that the grammar has taken; as `take`."""
        if self._grammar is not None and token_id in self._banned_ids():
            raise OrcdError("the grammar of this request can only be kept to with what its bad_words forbid")
        self._append(token_id)
        return token_id

    def restore(self, token_ids: Sequence[int], num_left: int) -> None:
        """Take the ids of an earlier owner."""
        if self._grammar is not None:
            self._grammar.restore(token_ids, num_left)
        for token_id in token_ids:
            self._append(token_id)

    def _banned_ids(self) -> set[int]:
        last_ids = self._last_ids
        longer = self._longer.get(last_ids[-1], ()) if last_ids else ()
        return self._single_ids | {last for before, last in longer if last_ids[-len(before) :] == before}

    def _append(self, token_id: int) -> None:
        self._last_ids = (*self._last_ids, token_id)[-self._num_kept :]


class BadWordsBatch(msgspec.Struct, frozen=True):
    """Those whose grammars are asked together by ``grammars``: a `worker.engine.token_constraint.ConstraintBatch`."""

    grammars: ConstraintBatch

    def masks(self, asked: Sequence[Asked]) -> list[TokenMask | int | Exception]:
        """See `ConstraintBatch`; all that are ``asked`` are `BadWords` with a grammar."""
        masks = self.grammars.masks([(cast(BadWords, each).grammar, num_left) for each, num_left in asked])
        return [
            mask if isinstance(mask, Exception) else cast(BadWords, each).without_banned(mask)
            for (each, _), mask in zip(asked, masks, strict=True)
        ]

    def take(self, drawn: Sequence[Drawn]) -> list[int | Exception]:
        """See `ConstraintBatch`; the same holds."""
        taken = self.grammars.take([_of_grammar(each) for each in drawn])
        return [_settled(each, token_id) for each, token_id in zip(drawn, taken, strict=True)]

    def take_known(self, drawn: Sequence[Drawn]) -> list[int | Exception | None]:
        """See `ConstraintBatch`; the same holds."""
        taken = self.grammars.take_known([_of_grammar(each) for each in drawn])
        return [
            None if token_id is None else _settled(each, token_id) for each, token_id in zip(drawn, taken, strict=True)
        ]

    def take_unknown(self, drawn: Drawn, *, waits: bool) -> int | Exception | None:
        """See `ConstraintBatch`; the same holds."""
        taken = self.grammars.take_unknown(_of_grammar(drawn), waits=waits)
        return None if taken is None else _settled(drawn, taken)


def _of_grammar(drawn: Drawn) -> Drawn:
    words, token_id, num_left = drawn
    return cast(BadWords, words).grammar, token_id, num_left


def _settled(drawn: Drawn, taken: int | Exception) -> int | Exception:
    if isinstance(taken, Exception):
        return taken
    try:
        return cast(BadWords, drawn[0]).settle(taken)
    except OrcdError as error:
        return error
