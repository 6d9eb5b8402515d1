"""What may follow inside of strings that may have any text, by how many characters may still come.

Such a mask allows text that is not too long, and text that is not too long with an end behind it, as far as what comes
behind the end of the string may follow. So of two strings in whose middle the same may follow, the same may follow
wherever fewer characters are left.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.engine.token_constraint import TokenMask
from worker.text.grammar.known_closing import KnownClosing


@dataclass(slots=True, eq=False)
class AlikeStrings:
    """Strings in which the same may follow."""

    masks: dict[int, TokenMask] = field(default_factory=dict)
    """By how many characters may still come, `StringMasks.far` if they are more."""
    halves: dict[tuple[int, bytes], TokenMask] = field(default_factory=dict)
    """Behind the beginning of one of these, too, `StringMasks.far_within` if they are more."""


@dataclass(slots=True, eq=False)
class StringMasks:
    """The masks inside of one string of a document's outline."""

    num_most: int
    """Characters that it may have, or as many of them as are known of if ``is_bounded`` is False."""
    is_bounded: bool
    far: int
    """No token has more characters."""
    far_within: int
    """Nor has one that begins within a character."""
    families: dict[tuple[int, TokenMask], AlikeStrings]
    """Of all strings of a grammar."""
    alike: AlikeStrings = field(default_factory=AlikeStrings)
    num_alike: int = -1
    """While so many characters may come, or fewer, the masks are those of ``alike``."""
    least: int | None = None
    """With so many characters it may end; None: that was not seen yet."""
    ends: dict[KnownClosing, bool] = field(default_factory=dict)
    """Where it has room for these and may end, whether they close the document."""

    def anew(self, families: dict[tuple[int, TokenMask], AlikeStrings]) -> StringMasks:
        """The same string, of whose masks nothing is known."""
        return StringMasks(self.num_most, self.is_bounded, self.far, self.far_within, families)

    def room(self, length: int) -> int | None:
        """Characters that may come behind ``length`` of them, if that is known; `far` if they are more."""
        room = self.num_most - length
        return min(room, self.far) if self.is_bounded or room >= self.far else None

    def has_room(self, length: int, num_chars: int) -> bool:
        """Whether it is known that behind ``length`` characters so many may come, and the end at any time."""
        room = self.room(length)
        return self.least is not None and length >= self.least and room is not None and room >= num_chars

    def known(self, length: int, half: bytes = b"") -> TokenMask | None:
        """The mask behind so many characters, and behind the beginning of one more, if it is known."""
        room = self.room(length)
        if room is None or room > self.num_alike or self.least is None or length < self.least:
            return None
        return self.alike.halves.get((min(room, self.far_within), half)) if half else self.alike.masks.get(room)

    def learn_half(self, length: int, half: bytes, mask: TokenMask) -> None:
        """The ``mask`` behind so many characters and the beginning of one more was computed."""
        room = self.room(length)
        if room is not None and room <= self.num_alike and self.least is not None and length >= self.least:
            self.alike.halves.setdefault((min(room, self.far_within), half), mask)

    def learn(self, length: int, mask: TokenMask, *, may_end: bool) -> None:
        """The ``mask`` behind so many characters was computed; ``may_end``: it allows the end of the string."""
        room = self.room(length)
        if room is None or not may_end:
            return
        self.least = length if self.least is None else min(self.least, length)
        if room > self.num_alike:
            before, num_before = self.alike, self.num_alike
            self.alike, self.num_alike = self.families.setdefault((room, mask), AlikeStrings()), room
            for each, known in before.masks.items():
                if each <= num_before:
                    self.alike.masks.setdefault(each, known)
        self.alike.masks.setdefault(room, mask)
        self.families.setdefault((room, mask), self.alike)
