"""Masks of strings that are computed with their grammar: near the end of a string that is bounded they take long.

A step would wait for each; here they hold up only who asks for a new grammar.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from worker.text.grammar.token_matcher import TokenMatcher

PLENTY = 1 << 30
"""Tokens that may still come, where nothing shall be closed."""


def compute_early(beginning: TokenMatcher, document: Sequence[int], num_words: int, end_s: float) -> None:
    """Know the masks of strings that may be where ``document`` comes to, as far as time goes.

    ``beginning`` has taken no token; a mask has ``num_words``. ``end_s``: of `time.monotonic`.
    """
    answer, words, seen = beginning.copy(), np.empty(num_words, np.uint32), set[bytes]()
    for token_id in document:
        place, places = answer.place, answer.places
        if place is None or places is None or time.monotonic() > end_s:
            return
        if place.length < 0 and answer.state.validate_tokens([places.quote_id]):
            string = answer.copy()
            string.take(places.quote_id, PLENTY)
            if string.place is not None and string.place.outline not in seen:
                seen.add(string.place.outline)
                _compute_within(string, words, end_s)
        answer.take(token_id, PLENTY)


def _compute_within(answer: TokenMatcher, words: np.ndarray, end_s: float) -> None:
    """Those behind no character, one, and so on; of a string without a bound one, as the others are the same."""
    places = answer.places
    while places is not None and time.monotonic() < end_s:
        place = answer.place
        if place is None or place.string is None or not place.string.room(place.length):
            return
        if place.known_mask() is None:
            words[:] = 0
            answer.write_mask(words.data, PLENTY)
            places.keep_mask(place, words.tobytes())
        elif not place.string.is_bounded:
            return
        answer.take(places.probe_id, PLENTY)
