"""Closings that answers of a grammar know, and what is left of each behind a token: both is found out once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worker.text.grammar.alphabet import MOST_PASSED, SPACE, Alphabet

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

    __slots__ = (
        "_behind_texts",
        "_closings",
        "_ends",
        "_most_text",
        "_remainders",
        "first_id",
        "length",
        "likely",
        "token_ids",
    )

    def __init__(self, closings: KnownClosings, token_ids: tuple[int, ...]) -> None:
        self._closings = closings
        self.token_ids = token_ids
        self.length = len(token_ids)
        self.first_id = token_ids[0] if token_ids else None
        self._remainders: dict[int, KnownClosing | None] = {}
        self.likely: dict[int, KnownClosing] = {}
        """What `likely_remainder` has said."""
        self._behind_texts: dict[bytes, KnownClosing] = {}
        self._ends: tuple[KnownClosing, ...] | None = None
        self._most_text = -1

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
        found = self.likely.get(token_id)
        if found is None:
            if len(self.likely) >= MAX_REMAINDERS:
                self.likely.clear()
                self._behind_texts.clear()
            found, alphabet = self.remainder(token_id), self._closings.alphabet
            if found is None and not alphabet.kinds[token_id]:
                found = self
            elif found is None:  # which white space does not change
                text = alphabet.texts[token_id].translate(None, SPACE)
                found = self._behind_texts.get(text)
                if found is None:
                    found = self._closings.of(alphabet.likely_remainder(self.token_ids, token_id))
                    self._behind_texts[text] = found
            self.likely[token_id] = found
        return found

    @property
    def ends(self) -> tuple[KnownClosing, ...]:
        """Its ends, in the order in which `worker.text.grammar.closing.Closing.renewed` tries whether one is left."""
        if self._ends is None:
            ids, quote_id = self.token_ids, self._closings.alphabet.quote_id
            starts = [*([0] if self.first_id == quote_id else []), *starts_of(ids)]
            self._ends = tuple([self._closings.of(ids[start:]) for start in starts])
        return self._ends

    def known_end(self, closes: Mapping[KnownClosing, bool]) -> KnownClosing | None:
        """The first of its ends that closes the document, where ``closes`` says so of all up to that one."""
        for end in self.ends:
            said = closes.get(end)
            if said is not False:
                return end if said else None
        return None

    def note_end(self, found: KnownClosing, closes: dict[KnownClosing, bool]) -> None:
        """Have ``closes`` say which ends close the document, and do not, where ``found`` was made of this."""
        for end in self.ends:
            closes[end] = end.token_ids == found.token_ids
            if closes[end]:
                return

    @property
    def most_text(self) -> int:
        """In a string its ends begin with no more characters of text."""
        if self._most_text < 0:
            texts = [self._closings.alphabet.texts[token_id] for token_id in self.token_ids]
            last = next((at for at in range(MOST_PASSED, len(texts)) if b'"' in texts[at]), len(texts))
            self._most_text = sum(map(len, texts[: last + 1]))
        return self._most_text


def starts_of(closing: Sequence[int]) -> range:
    """Where an end of ``closing`` may begin if tokens have been written since, most of them first."""
    return range(min(MOST_PASSED, len(closing) - 1), -1, -1)
