"""One place of a document, and what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from worker.engine.token_constraint import TokenMask
from worker.text.grammar.alphabet import Alphabet
from worker.text.grammar.known_closing import KnownClosing
from worker.text.grammar.places.string_masks import StringMasks
from worker.text.grammar.places.white_space import SpaceMasks

if TYPE_CHECKING:
    from worker.text.grammar.lexers import KeptState

ANY_TOKEN = -1


@dataclass(slots=True, eq=False)
class Place:
    """Where an answer may be in its document, and what is known of that."""

    outline: bytes
    """The structure and the names so far, and of values only where they are."""
    text: bytes
    """What has begun behind the outline; any white space is spaces."""
    num_dropped: int
    """Characters that are not in the text of the string that is open."""
    outer: bytes
    """The objects and arrays that are open."""
    is_name_next: bool
    length: int
    """Characters of the string that this is in, if it may have any text; else -1."""
    alphabet: Alphabet
    lengths: dict[int, Place]
    """Places in that string by their length."""
    string: StringMasks | None = None
    """Masks in that string, or in the one in which half a character is ``text``."""
    space: WhiteSpace | None = None
    """White space, of which ``text`` is, if it is anything."""
    starts: tuple[int, ...] = ()
    """Where in the outline the objects and arrays that are open begin."""
    is_complete: bool = False
    """Whether nothing may follow."""
    is_kept: bool = True
    """Whether others that come here find what is known."""
    is_open: bool = True
    """Whether it is not told by bytes that must come next what tokens must."""
    forced: dict[int, Sequence[int]] = field(default_factory=dict)
    """The tokens that must come next, as far as they are known: by the last token where that may change how these are
    spelled."""
    must: bytes = b""
    """What must come next."""
    spelled: dict[tuple[int, ...], Sequence[int]] = field(default_factory=dict)
    """As ``forced``, by how that is written behind the last token."""
    is_free: bool = False
    """Whether it is known that no token must come next."""
    mask: TokenMask | None = None
    """Of the next token, once it is known."""
    closings: dict[tuple[int, KnownClosing], KnownClosing] = field(default_factory=dict)
    """Tokens that close the document, by the last token as for ``forced``, and by the closing of which they were made.
    """
    ends: dict[KnownClosing, bool] = field(default_factory=dict)
    """Whether these close the document, of some."""
    next: dict[int, Place] = field(default_factory=dict, repr=False)
    """Places behind tokens, by their `keys`."""
    state: KeptState | None = field(default=None, repr=False)
    """What has taken tokens that lead here."""
    keys: Sequence[int] = field(init=False, repr=False)
    """Of each token, see `behind`."""
    num_counted: int = field(init=False)
    counted: dict[int, Place] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.num_counted, self.counted = self.length, self.lengths
        self.keys = self.alphabet.text_keys if self.length >= 0 else self.alphabet.shapes

    def begin_space(self, space: WhiteSpace) -> None:
        """It is where this ``space`` may begin, or go on."""
        self.space, self.ends, self.next = space, space.ends, space.next
        self.num_counted, self.counted, self.keys = len(self.text), space.places, self.alphabet.space_keys

    def begin_number(self, behind: dict[int, Place]) -> None:
        """It is in a number; ``behind`` are the places behind that, whatever its digits are."""
        self.next, self.num_counted, self.counted, self.keys = behind, 0, {}, self.alphabet.number_keys

    def behind(self, key: int) -> Place | None:
        """The place behind a token with that of `keys`, if somebody has taken such a token here.

        Below 0 the token goes on with a string that may have any text, with white space or with a number.
        """
        return self.next.get(key) if key >= 0 else self.counted.get(self.num_counted - key)

    def known_mask(self) -> TokenMask | None:
        """The mask of the next token, if it is known."""
        if self.mask is None and self.string is not None:
            is_within = self.length < 0  # a character
            self.mask = self.string.known(self.num_dropped if is_within else self.length, self.text[1:])
        elif self.mask is None and self.space is not None:
            self.mask = self.space.masks.known(len(self.text))
        return self.mask

    def known_closing(self, last_id: int, earlier: KnownClosing) -> KnownClosing | None:
        """What closes the document behind the token ``last_id``, made of an ``earlier`` closing, if that is known."""
        known = self.closings.get((ANY_TOKEN if self.is_open else last_id, earlier))
        return earlier.known_end(self.ends_of(earlier)) if known is None and self.outer else known

    def is_ready(self, last_id: int) -> bool:
        """Whether it is known what may follow here, behind the token ``last_id``."""
        forced = self.forced_behind(last_id)
        return self.is_complete or bool(forced) or (forced is not None and self.known_mask() is not None)

    def ends_of(self, earlier: KnownClosing) -> dict[KnownClosing, bool]:
        """What is known of the ends of ``earlier``, and what shall know more: of a string if it has room for them."""
        string = self.string
        is_roomy = string is not None and self.length >= 0 and string.has_room(self.length, earlier.most_text)
        return string.ends if string is not None and is_roomy else self.ends

    def forced_behind(self, last_id: int) -> Sequence[int] | None:
        """The tokens that must come next behind the token ``last_id``, as far as they are known."""
        known = self.forced.get(ANY_TOKEN if self.is_open else last_id)
        if known is None and self.spelled and last_id != ANY_TOKEN:
            known = self.spelled.get(self._spelled_behind(last_id))
            if known is not None:
                self.forced[last_id] = known
        return known

    def keep_forced(self, last_id: int, token_ids: Sequence[int]) -> None:
        """Tell others."""
        self.forced[ANY_TOKEN if self.is_open else last_id] = token_ids
        self.is_free = self.is_open and not token_ids
        if not self.is_open and last_id != ANY_TOKEN:
            self.spelled[self._spelled_behind(last_id)] = token_ids

    def _spelled_behind(self, last_id: int) -> tuple[int, ...]:
        return self.alphabet.spelling.behind(last_id, self.alphabet.texts[last_id], self.must)


@dataclass(slots=True, eq=False)
class WhiteSpace:
    """White space that may stand between two parts of a document, and what is known there."""

    masks: SpaceMasks
    ends: dict[KnownClosing, bool] = field(default_factory=dict)
    """As `Place.ends`."""
    next: dict[int, Place] = field(default_factory=dict, repr=False)
    """As `Place.next`: the same behind any white space, but for what goes on with it."""
    places: dict[int, Place] = field(default_factory=dict, repr=False)
    """Places between the two parts, by how much white space has been written."""

    def forget(self) -> None:
        """Know nothing."""
        for known in (self.masks.masks, self.ends, self.next, self.places):
            known.clear()
