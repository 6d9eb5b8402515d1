"""Masks inside of strings, which are dear, are computed once for all answers of a grammar.

Inside a string that may have any text the next token depends on where in the document that is, and on how long it is.
It does not depend on what other strings and numbers hold, where no schema tells alternatives apart by that
(`worker.text.grammar.document_growth.Growth.tells_by_place`).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from copy import copy

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from worker.text.grammar.alphabet import Alphabet

MAX_BYTES = 64 << 20
"""Of masks that are kept, for all grammars together; one takes 19 kB for 152,000 tokens."""
MAX_FORCED = 20_000
"""Places of a grammar of which it is known what must come next, mostly nothing."""
PROBES = b"~^|`@#%zqZQXKWVJ"
_LEXEME = re.compile(rb'"(?:[^"\\]|\\.)*+"|[{}\[\],:]|[^\s{}\[\],:"]++|\s++', re.DOTALL)
_STRUCTURE = frozenset(b"{}[],:")

Mask = NDArray[np.uint32]


class MaskCache:
    """Those that were used last, of all grammars."""

    def __init__(self) -> None:
        self._masks: OrderedDict[tuple[StringMasks, bytes, int], Mask] = OrderedDict()
        self._num_bytes = 0

    def get(self, key: tuple[StringMasks, bytes, int]) -> Mask | None:
        """The mask of a place, if it is known."""
        mask = self._masks.get(key)
        if mask is not None:
            self._masks.move_to_end(key)
        return mask

    def put(self, key: tuple[StringMasks, bytes, int], mask: Mask) -> None:
        """Keep a copy of the mask of a place that was not known."""
        self._num_bytes += mask.nbytes * (key not in self._masks)
        self._masks[key] = mask.copy()
        while self._num_bytes > MAX_BYTES:
            self._num_bytes -= self._masks.popitem(last=False)[1].nbytes


class StringMasks:
    """What is known of the strings of one grammar."""

    def __init__(self, cache: MaskCache, alphabet: Alphabet, probe_id: int) -> None:
        """``probe_id``: the token of a character that only strings with any text may have."""
        self.cache = cache
        self.alphabet = alphabet
        self._probe_id = probe_id
        self.forced: dict[tuple[bytes, int], Sequence[int]] = {}
        """What must come next, by outline and length."""
        self._with_any_text: set[bytes] = set()  # behind which outlines

    def is_known(self, outline: bytes) -> bool:
        """Whether `has_any_text` was found to hold."""
        return outline in self._with_any_text

    def has_any_text(self, outline: bytes, state: LLMatcher) -> bool:
        """Whether the string behind ``outline``, in which ``state`` is, is known to be one that may have any text."""
        if outline not in self._with_any_text:
            if len(self._with_any_text) >= MAX_FORCED:
                self._with_any_text.clear()
            if state.validate_tokens([self._probe_id]) != 1:
                return False
            self._with_any_text.add(outline)
        return True


class StringPlace:
    """In which string of a document an answer is, if in any.

    The outline of a document has its structure and its names, and of values only where they are.
    """

    __slots__ = ("_is_name_next", "_masks", "_num_dropped", "_outer", "_outline", "_text", "length", "quote_id")

    def __init__(self, masks: StringMasks) -> None:
        self._masks = masks
        self._outline = b""
        self._text = b""  # behind the outline
        self._num_dropped = 0  # characters that are not in the text of the string that is open
        self._outer = b""  # the objects and arrays that are open
        self._is_name_next = False
        self.length = -1
        """Characters of the string that the answer is in, if that may have any text, so far; else -1."""
        self.quote_id = masks.alphabet.quote_id
        """The token that ends a string."""

    def copy(self) -> StringPlace:
        """The same place in another answer."""
        return copy(self)

    def go_on(self, token_id: int) -> bool:
        """Go on behind a token that is more text of the string in which this is; False if it is not."""
        num_chars = self._masks.alphabet.num_chars[token_id] if self.length >= 0 else 0
        self.length += num_chars
        return num_chars > 0

    def follow(self, token_id: int, state: LLMatcher) -> None:
        """Go on behind a token that ``state`` has taken."""
        if self.go_on(token_id):
            return
        if self.length >= 0:
            self._num_dropped, self.length = self.length, -1
        alphabet = self._masks.alphabet
        text = alphabet.texts[token_id]
        self._text += text
        if b'"' in text:
            self._scan(state)
        elif self._masks.is_known(self._outline):
            self._begin(state)  # where half a character was

    def goes_on_with(self, token_id: int) -> bool:
        """Whether this is in a string that may have any text, and still is with that token."""
        return self.length >= 0 and self._masks.alphabet.num_chars[token_id] > 0

    def forced(self, state: LLMatcher) -> Sequence[int]:
        """The tokens that must come next behind ``state``, which has taken the same."""
        if self.length < 0:
            return state.compute_ff_tokens()
        known, key = self._masks.forced, (self._outline, self.length)
        found = known.get(key)
        if found is None:
            if len(known) >= MAX_FORCED:
                known.clear()
            found = known[key] = state.compute_ff_tokens()
        return found

    def known_mask(self) -> Mask | None:
        """The mask of the next token, if it is known."""
        return None if self.length < 0 else self._masks.cache.get((self._masks, self._outline, self.length))

    def keep_mask(self, mask: Mask) -> None:
        """Tell the others what the mask of the next token is here."""
        if self.length >= 0:
            self._masks.cache.put((self._masks, self._outline, self.length), mask)

    def _scan(self, state: LLMatcher) -> None:
        text, end, outline = self._text, 0, [self._outline]
        match_next = _LEXEME.scanner(text).match  # type: ignore[attr-defined]
        while (found := match_next()) is not None:
            lexeme: bytes = found[0]
            kind = lexeme[0]
            if kind == ord('"'):
                outline.append(lexeme if self._is_name_next else b'""')
            elif kind in _STRUCTURE:
                outline.append(lexeme)
                self._follow_structure(lexeme)
            elif not lexeme.isspace():
                if found.end() == len(text):  # it may go on
                    break
                outline.append(b"0")
            end = found.end()
        if end:
            self._outline, self._text, self._num_dropped = b"".join(outline), text[end:], 0
        self._begin(state)

    def _begin(self, state: LLMatcher) -> None:
        """Find out how long the string is in which this is, if it is in one."""
        if self._is_name_next or not self._text.startswith(b'"') or b"\\" in self._text:
            return
        try:
            length = self._num_dropped + len(self._text[1:].decode())
        except ValueError:  # it ends in half a character
            return
        if self._masks.has_any_text(self._outline, state):
            self.length, self._text = length, b'"'

    def _follow_structure(self, lexeme: bytes) -> None:
        if lexeme in b"{[":
            self._outer += lexeme
        elif lexeme in b"}]":
            self._outer = self._outer[:-1]
        self._is_name_next = lexeme in b"{," and self._outer.endswith(b"{")
