"""What is known of places with their grammar: what no step then waits for, but only who asks for a new grammar.

The masks of all strings, as near the end of one that is bounded they take long; and what may follow where a short
document comes to, with white space or without, and where longer ones do that have more values.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from worker.text.grammar.grammar_text import MOST_SPACE

if TYPE_CHECKING:
    from worker.text.grammar.closing import ClosingRule
    from worker.text.grammar.token_matcher import TokenMatcher

PLENTY = 1 << 30
"""Tokens that may still come, where nothing shall be closed."""
MOST_LONGER = 8
"""Documents with more values that are looked at: some schemas have no longest one."""


class EarlyPlaces:
    """Finds them out."""

    def __init__(self, rule: ClosingRule, num_words: int, end_s: float) -> None:
        """A mask has ``num_words``. ``end_s``: of `time.monotonic`."""
        self._rule, self._end_s = rule, end_s
        self._words = np.empty(num_words, np.uint32)
        self._strings, self._parts = set[bytes](), set[bytes]()  # outlines that were seen
        self._longer: list[tuple[TokenMatcher, Sequence[int]]] = []
        self._num_longer = 0

    def find(self, beginning: TokenMatcher, document: Sequence[int]) -> None:
        """As far as time goes; ``beginning`` has taken no token, and ``document`` is a short one."""
        self._longer.append((beginning.copy(), document))
        while self._longer:
            self._follow(*self._longer.pop(0), document)

    @property
    def _is_late(self) -> bool:
        return time.monotonic() > self._end_s

    def _follow(self, answer: TokenMatcher, closing: Sequence[int], document: Sequence[int]) -> None:
        for index, token_id in enumerate(closing):
            place, places = answer.place, answer.places
            if place is None or places is None or self._is_late:
                self._longer.clear()
                return
            if place.length < 0 and answer.state.validate_tokens([places.quote_id]):
                string = answer.copy()
                string.take(places.quote_id, PLENTY)
                if string.place is not None and string.place.outline not in self._strings:
                    self._strings.add(string.place.outline)
                    self._know_string(string)
            self._know(answer)
            if place.space is not None and place.outline not in self._parts:
                self._parts.add(place.outline)
                self._know_spaces(answer.copy())
                self._go_on(answer, closing[index:], document)
            answer.take(token_id, PLENTY)

    def _go_on(self, answer: TokenMatcher, closing: Sequence[int], document: Sequence[int]) -> None:
        """Where another value may come instead of an end, there is a longer document."""
        comma_id = self._rule.alphabet.of_byte(ord(","))
        if self._num_longer == MOST_LONGER or comma_id is None or comma_id == closing[0]:
            return
        if not answer.state.validate_tokens([comma_id]):
            return
        longer = answer.copy()
        longer.take(comma_id, PLENTY)
        found = self._rule.renewed(longer.state, self._rule.closings.of(closing), tuple(document))
        if found is not None:
            self._num_longer += 1
            self._longer.append((longer, found.token_ids))

    def _know(self, answer: TokenMatcher) -> None:
        """What must follow, or may."""
        place, places = answer.place, answer.places
        if places is None or place is None or answer.forced_id(PLENTY) is not None or place.known_mask() is not None:
            return
        self._words[:] = 0
        answer.write_mask(self._words.data, PLENTY)
        places.keep_mask(place, self._words.tobytes())

    def _know_spaces(self, answer: TokenMatcher) -> None:
        """All white space that may come."""
        space_id = self._rule.alphabet.of_byte(ord(" "))
        for _ in range(MOST_SPACE):
            if space_id is None or self._is_late or not answer.state.validate_tokens([space_id]):
                return
            answer.take(space_id, PLENTY)
        self._know(answer)

    def _know_string(self, answer: TokenMatcher) -> None:
        """Behind no character, one, and so on; of a string without a bound one, as the others are the same."""
        while answer.places is not None and not self._is_late:
            place = answer.place
            if place is None or place.string is None or not place.string.room(place.length):
                return
            if place.known_mask() is not None and not place.string.is_bounded:
                return
            self._know(answer)
            answer.take(answer.places.probe_id, PLENTY)
