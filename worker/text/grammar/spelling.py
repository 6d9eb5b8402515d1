"""How texts inside of an answer are written in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache

from worker.text.tokenizer import Tokenizer

MAX_KNOWN_TEXTS, MAX_KNOWN_BYTES = 2048, 1024
"""Texts whose ids are kept, of so many bytes at most: names and literals of schemas."""
_MARK = "\x02"
"""A character that vocabularies join with no others: what is in front of it is put there by the tokenizer."""


class Spelling:
    """The ids of texts in front of which no space is put.

    It is asked for each text that must follow, of one answer after the other.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids_of_short = lru_cache(MAX_KNOWN_TEXTS)(self._ids_of)

    def __call__(self, text: bytes) -> Sequence[int]:
        """The ids of ``text``."""
        return self._ids_of_short(text) if len(text) <= MAX_KNOWN_BYTES else self._ids_of(text)

    def behind(self, last_id: int, last_text: bytes, text: bytes) -> tuple[int, ...]:
        """The ids of a text that must come behind a token: with these llguidance begins when it says what must come.

        It asks how both are written together, and if that does not begin with the token how ``text`` alone is.
        """
        together = self(last_text + text)
        return tuple(together[1:] if together[:1] == [last_id] else self(text))

    @cached_property
    def _mark_id(self) -> int:
        return self._tokenizer.encode(_MARK, add_special=False)[-1]

    def _ids_of(self, text: bytes) -> Sequence[int]:
        decoded = text.decode("utf-8", "replace")
        ids = self._tokenizer.encode(_MARK + decoded, add_special=False)
        if self._mark_id in ids:
            return ids[ids.index(self._mark_id) + 1 :]
        return self._tokenizer.encode(decoded, add_special=False)  # a vocabulary that joins it all the same
