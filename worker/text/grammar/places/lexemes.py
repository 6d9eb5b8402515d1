"""What a text adds to the outline of a document: its structure and names, and of values only where they are.

Of an object or array that has ended only its brackets are left. No schema whose places are told
(`worker.text.grammar.document_growth.Growth.tells_by_place`) has two objects, or two arrays, to choose from in one
place: so what was inside of it says nothing of what may follow.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

MAX_KNOWN, MAX_KNOWN_BYTES = 1 << 14, 96
"""Texts whose lexemes are kept, for all grammars, of so many bytes at most; one takes about 0.5 kB."""
_LEXEME = re.compile(rb'"(?:[^"\\]|\\.)*+"|[{}\[\],:]|[^\s{}\[\],:"]++|\s++', re.DOTALL)
_STRUCTURE = frozenset(b"{}[],:")


class Lexemes(NamedTuple):
    """What lexemes do to an outline."""

    num_closed: int
    """Objects and arrays that they end, of those that were open before: the outline ends before the first of them."""
    outline: bytes
    """What is put behind that."""
    starts: tuple[int, ...]
    """Where in it the objects and arrays begin that are left open."""
    text: bytes
    """The last lexeme, which may go on; any white space is spaces."""
    outer: bytes
    """The objects and arrays that are open."""
    is_name_next: bool


def read_lexemes(text: bytes, outer: bytes, is_name_next: bool) -> Lexemes:
    """Those of ``text`` in the objects and arrays of ``outer``; ``is_name_next``: a string would be a name."""
    is_short = len(text) + len(outer) <= MAX_KNOWN_BYTES
    return _read_short(text, outer, is_name_next) if is_short else _read(text, outer, is_name_next)


def _read(text: bytes, outer: bytes, is_name_next: bool) -> Lexemes:
    end, num_closed, outline, starts = 0, 0, b"", list[int]()
    match_next = _LEXEME.scanner(text).match  # type: ignore[attr-defined]
    while (found := match_next()) is not None:
        lexeme: bytes = found[0]
        kind = lexeme[0]
        if kind == ord('"'):
            outline += lexeme if is_name_next else b'""'
        elif lexeme in (b"{", b"["):
            starts.append(len(outline))
            outline += lexeme
            outer += lexeme
        elif lexeme in (b"}", b"]"):
            if starts:
                outline = outline[: starts.pop()]
            elif outer:
                num_closed, outline = num_closed + 1, b""
            outline += outer[-1:] + lexeme
            outer = outer[:-1]
        elif kind in _STRUCTURE:
            outline += lexeme
        elif found.end() == len(text):  # it may go on
            break
        elif not lexeme.isspace():
            outline += b"0"
        if kind in _STRUCTURE:
            is_name_next = lexeme in b"{," and outer.endswith(b"{")
        end = found.end()
    left = text[end:]
    return Lexemes(
        num_closed, outline, tuple(starts), b" " * len(left) if left.isspace() else left, outer, is_name_next
    )


_read_short = lru_cache(MAX_KNOWN)(_read)
