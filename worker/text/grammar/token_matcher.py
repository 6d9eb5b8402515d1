"""A grammar's state in one answer: which tokens may be next, so that the document is always closed in time."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from ctypes import addressof, c_char

from llguidance import LLMatcher

from orcd.errors import OrcdError
from worker.engine.token_constraint import ConstraintBatch, TokenMask
from worker.text.grammar.closing import AnswerClosing, ClosingRule
from worker.text.grammar.known_closing import KnownClosing
from worker.text.grammar.lexers import KeptState, Lexers
from worker.text.grammar.places.document_places import DocumentPlaces
from worker.text.grammar.places.place import ANY_TOKEN

MOST_KEPT = 256
"""Tokens behind which a copy of what has taken them is kept: each takes it 0.1 to 0.3 us, and 0.1 kB."""
MOST_BEHIND = 256
"""Tokens that llguidance takes together, after places told what they lead to: a token takes it 1 us."""


def too_complex() -> OrcdError:
    """What is wrong where a mask cannot be computed."""
    return OrcdError("the grammar of this request became too complex for the answer")


class TokenMatcher(AnswerClosing):
    """The grammar of one choice of a request (`worker.engine.token_constraint.TokenConstraint`).

    What it says follows from the tokens taken so far, in their order, and from how many may follow; so an answer that
    another process goes on with is the same one. With a `ClosingRule` there are always enough tokens left to close the
    document, if there were in the beginning: when no more are left than a closing takes, that is all that may come, and
    a token after which too few would be left is replaced.

    A closing is looked for only where the bound of its length comes near what is left. Until then the one that was
    known last tells the bound; where tokens write its beginning, the rest of it is one.

    Where other answers have been, places (`worker.text.grammar.places.document_places`) tell what llguidance would.
    """

    __slots__ = (  # noqa: SIM905
        "__weakref__ _behind _forced _kept _last_id _lexers _num_taken _state batch is_complete lexer mask_s place "
        "places shortest told told_left"
    ).split()

    def __init__(
        self,
        lexers: Lexers,
        batch: ConstraintBatch,
        rule: ClosingRule | None = None,
        places: DocumentPlaces | None = None,
    ) -> None:
        """``lexers`` and ``places`` are those of the grammar; ``batch`` is that of all matchers."""
        super().__init__(rule)
        self._lexers = lexers
        self.batch = batch
        self.places = places
        """Where it may be in its document, if places tell anything."""
        self.place = None if places is None else places.beginning
        self._behind, self._last_id = list[int](), ANY_TOKEN  # tokens that were taken, but not by `_state`
        self._kept: KeptState | None = None  # what has taken all others, instead of `_state`
        self.is_complete = False  # whether nothing may follow
        self._begin()
        self._forced: Sequence[int] | None = None  # what must come next, once that was asked for
        self.told: TokenMask | int | None = None
        """What `known_mask` says with ``told_left`` tokens that may be drawn, if that is known before somebody asks."""
        self.told_left = -1
        self.mask_s = 0.0  # what the last mask took that was computed apart from others'
        self.shortest: tuple[int, ...] = ()
        """A whole document."""

    def copy(self) -> TokenMatcher:
        """The same state, which then goes its own way."""
        state, other = self.state, copy(self)
        other._behind = []
        if self._last_id != ANY_TOKEN:
            other._go_on_from(KeptState(other.lexer, state, other._num_taken))
        else:
            other._begin()
        return other

    @property
    def state(self) -> LLMatcher:
        """What has taken all tokens, or others that led to the same place."""
        if self._kept is not None:
            self.lexer.answers.discard(self)
            self._go_on_from(self._kept)
            self._kept = None
        if self._behind:
            behind, self._behind = self._behind, []
            if not self._state.consume_tokens(behind):
                raise self._refusal()
            self._num_taken += len(behind)
            if self.place is not None and self.places is not None and self._num_taken <= MOST_KEPT:
                self.places.keep_state(self.place, KeptState(self.lexer, self._state, self._num_taken))
        return self._state

    def min_tokens(self) -> int | None:
        """With how many tokens the document can be closed from here; None where no closing was found, or is wanted.

        A compiler asks before the first token: parts of that document then close others that have begun alike.
        """
        rule = self._rule
        if rule is None or (found := rule.closing.search(self.state)) is None:
            return None
        self._plan, self.shortest, self._bound = rule.closings.of(found), tuple(found), len(found)
        return len(found)

    def write_mask(self, mask: memoryview, num_left: int) -> None:
        """Set the bits of the tokens that may come next, in uint32 words; ``num_left`` may be drawn, this one included.

        Raises `OrcdError` where the grammar has become too complex.
        """
        known = self.known_mask(num_left)
        if isinstance(known, int):
            mask.cast("B")[known >> 3] = 1 << (known & 7)
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
            plan = self.prepare(num_left)
        if plan is not None and plan.length >= num_left and plan.length:
            return plan.first_id
        forced = self._forced
        if forced is None:
            place = self.place
            forced = None if place is None else place.forced_behind(self._last_id)
            if forced is None:
                forced = self.state.compute_ff_tokens()
                if place is not None:
                    place.keep_forced(self._last_id, forced)
            self._forced = forced
        return forced[0] if forced else None

    def known_mask(self, num_left: int) -> TokenMask | int | None:
        """What `write_mask` would say, if that is known, or the only id that may come next."""
        if self.told is not None and self.told_left == num_left:
            return self.told
        place = self.place
        if place is None:
            return self.forced_id(num_left)
        token_id = self.forced_id(num_left)
        return place.known_mask() if token_id is None else token_id

    def take(self, token_id: int, num_left: int) -> int:
        """Take the next token, one of ``num_left`` that may be drawn. Returns it, or the one that was taken instead."""
        if self.goes_on(token_id, num_left):
            return token_id
        self.prepare(num_left)
        return self.settle(token_id, num_left, is_right=self.state.consume_token(token_id))

    def goes_on(self, token_id: int, num_left: int, *, and_is_ready: bool = False) -> bool:
        """Take a token if its place is known and leaves room for a closing; False, and none was taken, if not.

        ``and_is_ready``: only if it is also known what may come next.
        """
        place, places, forced, rule, earlier = self.place, self.places, self._forced, self._rule, self._earlier
        if place is None or places is None or rule is None or earlier is None or len(self._behind) >= MOST_BEHIND:
            return False
        is_forced = forced and forced[0] == token_id
        if not is_forced:
            mask = place.mask
            if mask is None or not mask.words[token_id >> 3] >> (token_id & 7) & 1:
                return False
        key = place.keys[token_id]
        after = place.next.get(key) if key >= 0 else place.counted.get(place.num_counted - key)  # `Place.behind`
        if after is None and (after := places.after(place, token_id)) is None:
            return False
        forced = forced[1:] if is_forced and forced else ()
        if not forced:
            forced = () if after.is_free else after.forced_behind(token_id)
        told = forced[0] if forced else None if forced is None else after.mask
        if and_is_ready and told is None and not after.is_ready(token_id):
            return False
        plan, bound, margin = self._plan, self._bound, self._margin
        if plan is None and bound + margin > num_left:  # as in `prepare`
            plan = place.known_closing(self._last_id, earlier)
            if plan is None or plan.length > num_left:
                return False
            self._plan, self._bound = plan, plan.length
        is_in_text = key < 0 <= place.length
        if plan is not None:
            if not is_in_text or plan.first_id != places.quote_id:
                plan, earlier, bound = self._closing_behind(token_id, is_forced=bool(is_forced), is_in_text=is_in_text)
        elif not is_in_text:  # what that would say, as above
            bound += -1 if is_forced else rule.growth[rule.alphabet.kinds[token_id]]
            earlier = earlier.likely.get(token_id) or earlier.likely_remainder(token_id)
        if plan is None and bound + margin >= num_left:
            plan = after.known_closing(token_id, earlier)
            if plan is None:
                return False
            bound = plan.length
        if plan is not None and bound >= num_left:
            return False
        self._plan, self._earlier, self._bound, self._forced = plan, earlier, bound, forced
        if after.state is None:
            self._behind.append(token_id)
        else:
            self._kept, self._behind = after.state, []
        self._last_id, self.place, self.is_complete = token_id, after, after.is_complete
        self.told_left = num_left - 1
        self.told = plan.first_id if plan is not None and bound == num_left - 1 and bound else told
        return True

    def settle(self, token_id: int, num_left: int, *, is_right: bool) -> int:
        """Behind a token that ``state`` has taken; ``is_right``: it was allowed. Returns what `take` does."""
        if not is_right:
            raise self._refusal()
        before = self._plan, self._earlier, self._bound, self._forced, self.place
        self._step(token_id)
        self.prepare(num_left - 1, lightly=True)
        if self._has_room(num_left):
            return token_id
        rule = self._rule
        assert rule is not None, "no room for a document of which nobody wants to know the end"
        self._state.rollback(1)
        self._plan, self._earlier, self._bound, self._forced, self.place = before
        if (plan := self._plan or self._found(num_left)) is not None:
            token_id = rule.alphabet.end_id if plan.first_id is None else plan.first_id
        if not self._state.consume_token(token_id):
            raise self._refusal()
        self._step(token_id)
        return token_id

    def restore(self, token_ids: Sequence[int], num_left: int) -> None:
        """Take tokens that an earlier owner of the answer took, the first one of ``num_left``: none is replaced now."""
        for index, token_id in enumerate(token_ids):
            self.forced_id(num_left - index)
            if not self.state.consume_token(token_id):
                raise self._refusal()
            self._step(token_id)

    def _refusal(self) -> OrcdError:
        """What is wrong with a token that is not allowed; `_state` is no state any more."""
        self.place = self.places = self._forced = None
        return OrcdError("an answer holds a token that the grammar of its request does not allow")

    def _begin(self) -> None:
        lexer = self._lexers.choose()
        self._go_on_from(KeptState(lexer, lexer.beginning, 0))

    def _go_on_from(self, kept: KeptState) -> None:
        """Go on from a copy of that."""
        self.lexer, self._state, self._num_taken = kept.lexer, kept.state.deep_copy(), kept.num_taken
        self.lexer.answers.add(self)

    def _step(self, token_id: int) -> None:
        """Go on behind a token that `_state` has taken."""
        self.told_left = -1
        place, forced = self.place, self._forced
        rest = forced[1:] if forced and forced[0] == token_id else None
        self._forced = rest or None
        if self._rule is not None:
            is_in_text = place is not None and place.keys[token_id] < 0 <= place.length
            known = self._closing_behind(token_id, is_forced=rest is not None, is_in_text=is_in_text)
            self._plan, self._earlier, self._bound = known
        self._last_id = token_id
        self._num_taken += 1
        self.is_complete = self._state.is_stopped()
        if self.places is not None and self.place is not None:
            self.place = self.places.follow(self.place, token_id, self._state)

    def prepare(self, num_left: int, *, lightly: bool = False) -> KnownClosing | None:
        """What is to be known before a token is taken: a closing from here, should too few tokens be left behind it.

        None where there is room for any, or none was found.
        """
        is_near = self._plan is None and self._bound + self._margin > num_left
        if is_near and (found := self._found(num_left, lightly=lightly)) is not None:
            self._plan, self._bound = found, found.length
        return self._plan

    def _found(self, num_left: int, *, lightly: bool = False) -> KnownClosing | None:
        """A closing from here, if one is found; ``lightly``: where one is told in a moment, none is sought that fits.

        That is for where another token could be taken instead.
        """
        rule, place, earlier = self._rule, self.place, self._earlier
        assert rule is not None and earlier is not None, "a closing that nobody wants"
        found = None if place is None else place.known_closing(self._last_id, earlier)
        if found is None:
            found = rule.renewed(self.state, earlier, self.shortest)
            if found is not None and self.places is not None and place is not None:
                self.places.keep_closing(place, self._last_id, earlier, found)
        if found is None or (found.length > num_left and not lightly):
            found = rule.searched(self.state, num_left) or found
        return found
