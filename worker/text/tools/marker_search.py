"""Looks for markers in text that comes in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

MAX_SPACE = 16
"""Whitespace before a marker belongs to it. More of it is text, as whitespace is held back until the next character."""


class Split(NamedTuple):
    """A text cut at the first marker: ``before``, then ``found`` with the whitespace before it, then ``rest``.

    Without a marker ``found`` is empty, and ``rest`` is the end of the text that may yet become one.
    """

    before: str
    found: str
    rest: str


class MarkerSearch:
    """Finds the first of some ``markers``, none of which holds whitespace or another one."""

    def __init__(self, markers: Iterable[str]) -> None:
        self._markers = tuple(markers)
        self._longest = max(map(len, self._markers))
        self._firsts = frozenset(marker[0] for marker in self._markers)
        self._pattern = re.compile(rf"\s{{0,{MAX_SPACE}}}(?:{'|'.join(map(re.escape, self._markers))})")

    def split(self, text: str) -> Split:
        """``text`` begins with the ``rest`` of the last call, if that found no marker."""
        match = self._pattern.search(text)
        if match:
            return Split(text[: match.start()], match[0], text[match.end() :])
        border = self._border(text)
        return Split(text[:border], "", text[border:])

    def passes(self, text: str) -> bool:
        """Whether a text certainly has no marker, nor the beginning of one; told quickly."""
        return self._firsts.isdisjoint(text) and not text[-1:].isspace()

    def _border(self, text: str) -> int:
        """Where the longest end of ``text`` begins with which a marker may begin."""
        border = len(text)
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if any(marker.startswith(text[start:]) for marker in self._markers):
                border = start
                break
        return max(len(text[:border].rstrip()), border - MAX_SPACE)
