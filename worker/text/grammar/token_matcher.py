"""A grammar's state in one answer: which tokens may be next, so that the document is always closed in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from ctypes import addressof, c_char
from dataclasses import dataclass

from orcd.errors import OrcdError
from worker.text.grammar.alphabet import Alphabet
from worker.text.grammar.closing import Closing
from worker.text.grammar.lexers import Lexers
from worker.text.grammar.matcher_batch import MatcherBatch, too_complex

AMPLE_TOKENS = 16
"""Where so many tokens may follow beside those of the bound of the closing, none is looked for: the one that is found
need not be the shortest."""


@dataclass(frozen=True, slots=True)
class ClosingRule:
    """How a document is kept closable.

    A token of a kind lengthens the shortest closing by ``growth[kind]`` tokens at most, and all tokens since a closing
    was known, besides, by ``unfinished``.
    """

    closing: Closing
    alphabet: Alphabet
    growth: Sequence[float]
    unfinished: float


class TokenMatcher:
    """The grammar of one choice of a request (`worker.engine.token_constraint.TokenConstraint`).

    What it says follows from the tokens taken so far, in their order, and from how many may follow; so an answer that
    another process goes on with is the same one. With a `ClosingRule` there are always enough tokens left to close the
    document, if there were in the beginning: when no more are left than a closing takes, that is all that may come, and
    a token after which too few would be left is replaced.

    A closing is looked for only where the bound of its length comes near what is left. Until then the one that was
    known last tells the bound; where tokens write its beginning, the rest of it is one.
    """

    def __init__(self, lexers: Lexers, batch: MatcherBatch, rule: ClosingRule | None = None) -> None:
        """``lexers`` are those of the grammar; ``batch`` is that of all matchers."""
        self._lexers = lexers
        self.batch = batch
        self._rule = rule
        self._has_begun = False
        self._choose_lexer()
        self._plan: tuple[int, ...] | None = None  # a closing from here, if one is known
        self._likely: tuple[int, ...] = ()  # what may be left of the one that was known last
        self._shortest: tuple[int, ...] = ()  # a whole document
        self._bound = math.inf  # of the tokens that the shortest one takes, but for what is unfinished

    def copy(self) -> TokenMatcher:
        """The same state, which then goes its own way."""
        other = copy(self)
        if self._has_begun:
            other.state = self.state.deep_copy()
            other.lexer.answers.add(other)
        else:
            other._choose_lexer()
        return other

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow."""
        return bool(self.state.is_stopped())

    def min_tokens(self) -> int | None:
        """With how many tokens the document can be closed from here; None where no closing was found, or is wanted.

        A compiler asks before the first token: parts of that document then close others that have begun alike.
        """
        found = self._rule.closing.search(self.state) if self._rule else None
        if found is None:
            return None
        self._shortest = self._plan = tuple(found)
        self._bound = len(found)
        return len(found)

    def write_mask(self, mask: memoryview, num_left: int) -> None:
        """Set the bits of the tokens that may come next, in uint32 words; ``num_left`` may be drawn, this one included.

        Raises `OrcdError` where the grammar has become too complex.
        """
        token_id = self.closing_id(num_left)
        if token_id is not None:
            mask.cast("B")[token_id >> 3] = 1 << (token_id & 7)
            return
        address = addressof(c_char.from_buffer(mask))  # in a sixth of the time that NumPy takes to tell it
        self.state.unsafe_compute_mask_ptr(address, mask.nbytes)
        if self.state.is_error():
            raise too_complex()

    def closing_id(self, num_left: int) -> int | None:
        """The next token of the closing, if there are only as many left as that takes; else the grammar tells."""
        plan = self._plan
        if plan is None and not self._is_ample(num_left):
            plan = self._closing(num_left)
        return plan[0] if plan and len(plan) >= num_left else None

    def forced_id(self, num_left: int) -> int | None:
        """The only token that may come next, if there is no choice."""
        token_id = self.closing_id(num_left)
        if token_id is not None:
            return token_id
        forced = self.state.compute_ff_tokens()
        return forced[0] if forced else None

    def take(self, token_id: int, num_left: int) -> int:
        """Take the next token, one of ``num_left`` that may be drawn. Returns it, or the one that was taken instead."""
        self.prepare(num_left)
        return self.settle(token_id, num_left, is_right=self.state.consume_token(token_id))

    def prepare(self, num_left: int) -> None:
        """What is to be known before a token is taken: how to close the document, should too few be left behind it."""
        if self._plan is None and not self._is_ample(num_left):
            self._closing(num_left)

    def settle(self, token_id: int, num_left: int, *, is_right: bool) -> int:
        """Behind a token that ``state`` has taken; ``is_right``: it was allowed. Returns what `take` does."""
        before = self._plan, self._likely, self._bound
        self._follow(token_id, is_right=is_right)
        rule = self._rule
        if rule is None or self._has_room(num_left - 1):
            return token_id
        self.state.rollback(1)
        self._plan, self._likely, self._bound = before
        plan = self._found(num_left) if self._plan is None else self._plan
        if plan is not None:
            token_id = plan[0] if plan else rule.alphabet.end_id
        self._consume(token_id)
        return token_id

    def restore(self, token_ids: Sequence[int], num_left: int) -> None:
        """Take tokens that an earlier owner of the answer took, the first one of ``num_left``: none is replaced now."""
        for index, token_id in enumerate(token_ids):
            self._closing(num_left - index)
            self._consume(token_id)

    def _choose_lexer(self) -> None:
        self.lexer = self._lexers.choose()
        self.state = self.lexer.beginning.deep_copy()
        self.lexer.answers.add(self)

    def _has_room(self, num_left: int) -> bool:
        plan = self._closing(num_left, lightly=True)
        return len(plan) <= num_left if plan is not None else self._is_ample(num_left)

    def _closing(self, num_left: int, *, lightly: bool = False) -> tuple[int, ...] | None:
        """A closing from here. None where there is room for any, or none was found."""
        if self._plan is None and not self._is_ample(num_left):
            self._plan = self._found(num_left, lightly=lightly)
            if self._plan is not None:
                self._bound = len(self._plan)
        return self._plan

    def _found(self, num_left: int, *, lightly: bool = False) -> tuple[int, ...] | None:
        """A closing from here, if one is found; ``lightly``: where one is told in a moment, none is sought that fits.

        That is for where another token could be taken instead.
        """
        rule = self._rule
        assert rule is not None, "a closing that nobody wants"
        found = rule.closing.renewed(self.state, self._likely, self._shortest)
        if found is None or (len(found) > num_left and not lightly):
            other = rule.closing.search(self.state, num_left)
            found = found if other is None else other
        return None if found is None else tuple(found)

    def _is_ample(self, num_left: int) -> bool:
        return self._rule is None or self._bound + self._rule.unfinished + AMPLE_TOKENS <= num_left

    def _consume(self, token_id: int) -> None:
        self._follow(token_id, is_right=self.state.consume_token(token_id))

    def _follow(self, token_id: int, *, is_right: bool) -> None:
        if not is_right:
            raise OrcdError("an answer holds a token that the grammar of its request does not allow")
        self._has_begun = True
        rule = self._rule
        if rule is None:
            return
        if self._plan is not None:
            rest = rule.alphabet.remainder(self._plan, token_id)
            if rest is not None:
                self._plan, self._bound = rest, len(rest)
                return
            self._likely, self._plan = self._plan or self._likely, None
        kind = rule.alphabet.kinds[token_id]
        self._bound += rule.growth[kind]
        rest = rule.alphabet.remainder(self._likely, token_id)
        if rest is not None:
            self._likely = rest
        elif kind:
            self._likely = rule.alphabet.likely_remainder(self._likely, token_id)
