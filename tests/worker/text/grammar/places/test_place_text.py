"""The texts of tokens tell the outline of a document and what has begun behind it, whatever tokens these are."""

from __future__ import annotations

import pytest

from tests.worker.text.grammar.compilers import BYTE_LEVEL, alphabet_of
from worker.text.grammar.places.place import Place
from worker.text.grammar.places.place_text import PlaceText, text_behind

ALPHABET = alphabet_of(BYTE_LEVEL)


def behind(text: bytes) -> PlaceText:
    """A token for each byte."""
    found = PlaceText(b"", b"", 0, b"", False, ())
    for byte in text:
        outline, *known, starts = found
        place = Place(outline, *known, -1, ALPHABET, {}, starts=starts)
        found = text_behind(place, ALPHABET.of_byte(byte))
    return found


@pytest.mark.parametrize(
    ("text", "outline", "left", "outer"),
    [
        (b'{"a":1', b'{"a":', b"1", b"{"),
        (b'{"a":1,', b'{"a":0,', b"", b"{"),
        (b'{"a":"xyz","b":[1,2', b'{"a":"","b":[0,', b"2", b"{["),
        (b'{"a":[1,{"c":2}],"b', b'{"a":[],', b'"b', b"{"),
        (b"[ \n 1", b"[", b"1", b"["),
        (b"[ \n ", b"[", b"   ", b"["),
    ],
)
def test_of_values_only_where_they_are_is_left(text: bytes, outline: bytes, left: bytes, outer: bytes) -> None:
    assert behind(text)[:2] == (outline, left)
    assert behind(text).outer == outer


@pytest.mark.parametrize(
    ("text", "length"),
    [
        (b'{"a":"xyz', (3, b"")),
        (b'{"a":"x\\n\\"', (3, b"")),
        ('{"a":"xé'.encode(), (2, b"")),
        ('{"a":"x本'.encode()[:-1], (1, b"\xc2")),
        (b'{"a":"x\\', (-1, b"")),
        (b'{"a', (-1, b"")),
        (b'{"a":1', (-1, b"")),
    ],
)
def test_in_a_string_that_is_no_name_characters_are_counted(text: bytes, length: tuple[int, bytes]) -> None:
    assert behind(text).length() == length
