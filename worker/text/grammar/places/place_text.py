"""What the texts of tokens tell of places: the outline of a document, and the text behind that."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from worker.text.grammar.places.characters import count_characters
from worker.text.grammar.places.lexemes import read_lexemes

if TYPE_CHECKING:
    from worker.text.grammar.places.place import Place

_ESCAPE = re.compile(rb'\\["\\/bfnrt]')
"""Those that stand for one character each."""


class PlaceText(NamedTuple):
    """The first of the fields of `worker.text.grammar.places.place.Place`, and its last one."""

    outline: bytes
    text: bytes
    num_dropped: int
    outer: bytes
    is_name_next: bool
    starts: tuple[int, ...]

    def length(self) -> tuple[int, bytes]:
        """Characters of the string that this is in, so far, and the beginning of one more.

        -1 where they cannot be counted, or it is a name.
        """
        text = self.text
        if self.is_name_next or not text.startswith(b'"'):
            return -1, b""
        counted = count_characters(_ESCAPE.sub(b"x", text[1:]) if b"\\" in text else text[1:])
        return (-1, b"") if counted is None else (self.num_dropped + counted[0], counted[1])


def text_behind(before: Place, token_id: int) -> PlaceText:
    """What is behind ``before`` and a token that ends or begins something."""
    text, outline, starts = before.alphabet.texts[token_id], before.outline, before.starts
    if before.alphabet.only_spaces[token_id] or not before.text.isspace():  # else it is as if there was no white space
        text = before.text + text
    lexed = read_lexemes(text, before.outer, before.is_name_next)
    if lexed.num_closed:
        outline, starts = outline[: starts[-lexed.num_closed]], starts[: -lexed.num_closed]
    if lexed.starts:
        starts += tuple([len(outline) + start for start in lexed.starts])
    num_dropped = 0 if lexed.outline else before.num_dropped
    return PlaceText(outline + lexed.outline, lexed.text, num_dropped, lexed.outer, lexed.is_name_next, starts)
