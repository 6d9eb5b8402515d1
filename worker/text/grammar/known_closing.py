"""Closings that answers of a grammar know, and what is left of each behind a token: both is found out once."""

from __future__ import annotations

from collections.abc import Sequence

from worker.text.grammar.alphabet import Alphabet

MAX_CLOSINGS, MAX_REMAINDERS = 4096, 4096
"""Closings of a grammar, and tokens behind which what is left of one is kept; with more it is found out anew."""


class KnownClosings:
    """Those of one grammar: equal ones are the same object."""

    def __init__(self, alphabet: Alphabet) -> None:
        self.alphabet = alphabet
        self._closings: dict[tuple[int, ...], KnownClosing] = {}

    def of(self, token_ids: Sequence[int]) -> KnownClosing:
        """The closing of these tokens."""
        key = tuple(token_ids)
        found = self._closings.get(key)
        if found is None:
            if len(self._closings) >= MAX_CLOSINGS:
                self._closings.clear()
            found = self._closings[key] = KnownClosing(self, key)
        return found


class KnownClosing:
    """Tokens that close a document."""

    __slots__ = ("_closings", "_likely", "_remainders", "first_id", "length", "token_ids")

    def __init__(self, closings: KnownClosings, token_ids: tuple[int, ...]) -> None:
        self._closings = closings
        self.token_ids = token_ids
        self.length = len(token_ids)
        self.first_id = token_ids[0] if token_ids else None
        self._remainders: dict[int, KnownClosing | None] = {}
        self._likely: dict[int, KnownClosing] = {}

    def remainder(self, token_id: int) -> KnownClosing | None:
        """What is left of it when a token has written its beginning; None if that is another text."""
        remainders = self._remainders
        if token_id in remainders:
            return remainders[token_id]
        if len(remainders) >= MAX_REMAINDERS:
            remainders.clear()
        left = self._closings.alphabet.remainder(self.token_ids, token_id)
        found = remainders[token_id] = None if left is None else self._closings.of(left)
        return found

    def likely_remainder(self, token_id: int) -> KnownClosing:
        """What may be left of it behind a token that has written its beginning, or other text."""
        found = self._likely.get(token_id)
        if found is None:
            if len(self._likely) >= MAX_REMAINDERS:
                self._likely.clear()
            found = self.remainder(token_id)
            if found is None:
                alphabet = self._closings.alphabet
                is_text = not alphabet.kinds[token_id]
                found = self if is_text else self._closings.of(alphabet.likely_remainder(self.token_ids, token_id))
            self._likely[token_id] = found
        return found
