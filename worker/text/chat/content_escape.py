"""Keeps what messages spell from becoming control tokens, whatever a chat template does with it.

A template works on texts, and control tokens are found in what it writes by their spelling; whose text that was cannot
be seen any more. So before the template runs, the first character of a spelling in a message gets a stand-in: a private
character of Unicode that the messages do not hold. What the template writes then has no control tokens but its own.
After they are found the stand-ins become the characters again (`Tokenizer.encode`: ``stand_ins``).

Only whole spellings are hidden, and at the end of a text the beginning of one: templates look for some texts
themselves, as for ``</think>``. A template that takes something out of the middle of a text could put a spelling
together, so `hide_all` hides every character that one begins with, to compare.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import count, islice
from typing import Any

_FIRST_PRIVATE = 0x100000
_NAMES = ("role", "type")
"""Fields of messages and parts whose values templates compare with names that they know."""


class ContentEscape:
    """Hides the ``spellings`` of control tokens in the strings of plain JSON values."""

    def __init__(self, spellings: Collection[str]) -> None:
        self._spellings = sorted(filter(None, spellings))
        self._firsts = sorted({spelling[0] for spelling in self._spellings})
        self._longest = max(map(len, self._spellings), default=0)
        tails = {
            first: sorted((text[1:] for text in self._spellings if text[0] == first), key=len, reverse=True)
            for first in self._firsts
        }
        whole = (f"{re.escape(first)}(?={'|'.join(map(re.escape, texts))})" for first, texts in tails.items())
        self._whole = re.compile("|".join(whole) or r"(?!)")
        longest_first = sorted(self._spellings, key=len, reverse=True)
        self._spelt = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._any = re.compile("|".join(map(re.escape, self._firsts)) or r"(?!)")

    def stand_ins(self, *values: Any) -> dict[int, str]:
        """A character for each with which a spelling begins, none of which is in ``values``: by its code."""
        used = set().union(*(map(ord, text) for value in values for text in _strings(value)))
        free = (code for code in count(_FIRST_PRIVATE) if code not in used)
        return dict(zip(islice(free, len(self._firsts)), self._firsts, strict=True))

    def hide(self, value: Any, stand_ins: Mapping[int, str]) -> Any:
        """``value`` with stand-ins for what may be spelt in it."""
        by_first = {first: chr(code) for code, first in stand_ins.items()}
        return _mapped(value, lambda text: self._hide(text, by_first))

    def hide_all(self, value: Any, stand_ins: Mapping[int, str]) -> Any:
        """``value`` with stand-ins for every character with which a spelling begins."""
        by_first = {first: chr(code) for code, first in stand_ins.items()}

        def hide_all(text: str) -> str:
            return self._any.sub(lambda match: by_first[match[0]], text)

        return _mapped(value, hide_all, but=_NAMES)

    def spelt(self, text: str) -> list[str]:
        """The control tokens that are spelt in a text, in order."""
        return [match[0] for match in self._spelt.finditer(text)]

    def _hide(self, text: str, by_first: Mapping[str, str]) -> str:
        text = self._whole.sub(lambda match: by_first[match[0]], text)
        # What comes after this text may complete a spelling that begins at its end.
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            end = text[start:]
            if text[start] in by_first and any(spelling.startswith(end) for spelling in self._spellings):
                text = text[:start] + by_first[text[start]] + text[start + 1 :]
        return text


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield name
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _mapped(value: Any, change: Callable[[str], str], *, but: Collection[str] = ()) -> Any:
    """``value`` with all its strings changed; with ``but``, neither the values of those keys nor any keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            name if but else change(name): inner if name in but else _mapped(inner, change, but=but)
            for name, inner in value.items()
        }
    return [_mapped(inner, change, but=but) for inner in value] if isinstance(value, list) else value
