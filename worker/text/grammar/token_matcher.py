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
from worker.text.grammar.string_masks import StringMasks, StringPlace


@dataclass(frozen=True, slots=True)
class ClosingRule:
    """How a document is kept closable.

    A token of a kind lengthens the shortest closing by ``growth[kind]`` tokens at most, and all tokens since a closing
    was known, besides, by no more than ``margin``.
    """

    closing: Closing
    alphabet: Alphabet
    growth: Sequence[float]
    margin: float
    """For what is unfinished, and for a closing that is found and is not the shortest one."""


class TokenMatcher:
    """The grammar of one choice of a request (`worker.engine.token_constraint.TokenConstraint`).

    What it says follows from the tokens taken so far, in their order, and from how many may follow; so an answer that
    another process goes on with is the same one. With a `ClosingRule` there are always enough tokens left to close the
    document, if there were in the beginning: when no more are left than a closing takes, that is all that may come, and
    a token after which too few would be left is replaced.

    A closing is looked for only where the bound of its length comes near what is left. Until then the one that was
    known last tells the bound; where tokens write its beginning, the rest of it is one.
    """

    def __init__(
        self,
        lexers: Lexers,
        batch: MatcherBatch,
        rule: ClosingRule | None = None,
        string_masks: StringMasks | None = None,
    ) -> None:
        """``lexers`` are those of the grammar; ``batch`` is that of all matchers."""
        self._lexers = lexers
        self.batch = batch
        self._rule = rule
        self.place = None if string_masks is None else StringPlace(string_masks)
        """Where it is in its document, if that tells masks."""
        self._has_begun = False
        self.is_complete = False
        """Whether nothing may follow."""
        self._choose_lexer()
        self._forced: Sequence[int] | None = None  # what must come next, once that was asked for
        self._plan: tuple[int, ...] | None = None  # a closing from here, if one is known
        self._likely: tuple[int, ...] = ()  # what may be left of the one that was known last
        self._shortest: tuple[int, ...] = ()  # a whole document
        # Of the tokens that the shortest one takes, but for the margin.
        self._bound, self._margin = (math.inf, rule.margin) if rule else (-math.inf, 0.0)

    def copy(self) -> TokenMatcher:
        """The same state, which then goes its own way."""
        other = copy(self)
        other.place = None if self.place is None else self.place.copy()
        if self._has_begun:
            other.state = self.state.deep_copy()
            other.lexer.answers.add(other)
        else:
            other._choose_lexer()
        return other

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
        token_id = self.forced_id(num_left)
        if token_id is not None:
            mask.cast("B")[token_id >> 3] = 1 << (token_id & 7)
            return
        address = addressof(c_char.from_buffer(mask))  # in a sixth of the time that NumPy takes to tell it
        self.state.unsafe_compute_mask_ptr(address, mask.nbytes)
        if self.state.is_error():
            raise too_complex()

    def forced_id(self, num_left: int) -> int | None:
        """The only token that may come next, if there is no choice.

        That is the next token of the closing, if there are only as many left as that takes; else the grammar tells.
        What it says must follow is taken as it is spelled where that begins: its later part might be spelled otherwise.
        """
        plan = self._plan
        if plan is None and self._bound + self._margin > num_left:
            plan = self._closing(num_left)
        if plan and len(plan) >= num_left:
            return plan[0]
        if self._forced is None:
            place = self.place
            self._forced = self.state.compute_ff_tokens() if place is None else place.forced(self.state)
        return self._forced[0] if self._forced else None

    def take(self, token_id: int, num_left: int) -> int:
        """Take the next token, one of ``num_left`` that may be drawn. Returns it, or the one that was taken instead."""
        self.prepare(num_left)
        return self.settle(token_id, num_left, is_right=self.state.consume_token(token_id))

    def prepare(self, num_left: int) -> None:
        """What is to be known before a token is taken: how to close the document, should too few be left behind it."""
        if self._plan is None and self._bound + self._margin > num_left:
            self._closing(num_left)

    def settle(self, token_id: int, num_left: int, *, is_right: bool) -> int:
        """Behind a token that ``state`` has taken; ``is_right``: it was allowed. Returns what `take` does."""
        place, plan = self.place, self._plan
        if place is not None and place.length >= 0 and is_right:  # as most are
            has_room = self._bound + self._margin < num_left if plan is None else len(plan) < num_left
            if has_room and (plan is None or plan[0] == place.quote_id) and place.go_on(token_id):
                self._forced = None
                return token_id
        before = self._plan, self._likely, self._bound, self._forced
        self._follow(token_id, is_right=is_right)
        plan = self._plan
        if plan is None:
            if self._bound + self._margin < num_left:
                return self._placed(token_id)
            plan = self._closing(num_left - 1, lightly=True)
        if plan is not None and len(plan) < num_left:
            return self._placed(token_id)
        rule = self._rule
        assert rule is not None, "no room for a document of which nobody wants to know the end"
        self.state.rollback(1)
        self._plan, self._likely, self._bound, self._forced = before
        plan = self._found(num_left) if self._plan is None else self._plan
        if plan is not None:
            token_id = plan[0] if plan else rule.alphabet.end_id
        self._follow(token_id, is_right=self.state.consume_token(token_id))
        return self._placed(token_id)

    def restore(self, token_ids: Sequence[int], num_left: int) -> None:
        """Take tokens that an earlier owner of the answer took, the first one of ``num_left``: none is replaced now."""
        for index, token_id in enumerate(token_ids):
            self.forced_id(num_left - index)
            self._follow(token_id, is_right=self.state.consume_token(token_id))
            self._placed(token_id)

    def _choose_lexer(self) -> None:
        self.lexer = self._lexers.choose()
        self.state = self.lexer.beginning.deep_copy()
        self.lexer.answers.add(self)

    def _placed(self, token_id: int) -> int:
        if self.place is not None:
            self.place.follow(token_id, self.state)
        return token_id

    def _closing(self, num_left: int, *, lightly: bool = False) -> tuple[int, ...] | None:
        """A closing from here. None where there is room for any, or none was found."""
        if self._plan is None and self._bound + self._margin > num_left:
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

    def _follow(self, token_id: int, *, is_right: bool) -> None:
        forced, self._forced = self._forced, None
        if not is_right:
            raise OrcdError("an answer holds a token that the grammar of its request does not allow")
        self._has_begun = True
        rule, plan, place = self._rule, self._plan, self.place
        if place is not None and place.goes_on_with(token_id) and (plan is None or plan[:1] == (place.quote_id,)):
            return  # what closes a string that may have any text is the same
        self.is_complete = self.state.is_stopped()
        growth: float | None = None
        if forced and forced[0] == token_id:
            growth = -1  # any closing began with it
            if len(forced) > 1:
                self._forced = forced[1:]
        if rule is None:
            return
        alphabet = rule.alphabet
        if plan is not None:
            rest = alphabet.remainder(plan, token_id)
            if rest is not None:
                self._plan, self._bound = rest, len(rest)
                return
            self._plan = None
            if plan:
                self._likely = plan
        kind = alphabet.kinds[token_id]
        self._bound += rule.growth[kind] if growth is None else growth
        rest = alphabet.remainder(self._likely, token_id)
        if rest is not None:
            self._likely = rest
        elif kind:
            self._likely = alphabet.likely_remainder(self._likely, token_id)
