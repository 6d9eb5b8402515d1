"""A place tells when all is known that an answer needs in it."""

from __future__ import annotations

from copy import copy

import pytest

from tests.worker.text.grammar.compilers import BYTE_LEVEL, alphabet_of
from worker.engine.token_constraint import TokenMask
from worker.text.grammar.places.place import Place

LAST_ID = 6


def place(*, is_open: bool = True) -> Place:
    alphabet = copy(alphabet_of(BYTE_LEVEL))  # other tests use that one
    alphabet.spelling = SpelledInPairs()
    return Place(b"{", b'"', 0, b"{", True, -1, alphabet, {}, is_open=is_open, must=b"" if is_open else b'a"')


class SpelledInPairs:
    """What follows each two tokens is written in the same way."""

    def behind(self, last_id: int, _last_text: bytes, text: bytes) -> tuple[int, ...]:
        assert text == b'a"'
        return (last_id // 2,)


@pytest.mark.parametrize("is_open", [False, True])
def test_it_is_ready_with_a_token_that_must_come_or_a_mask_where_none_must(is_open: bool) -> None:
    one = place(is_open=is_open)
    one.mask = TokenMask(b"\xff")
    assert not one.is_ready(LAST_ID), "nobody has asked what must come"
    one.keep_forced(LAST_ID, ())
    assert one.is_ready(LAST_ID)
    assert one.is_ready(LAST_ID + 1), "it is written in the same way"
    assert one.is_ready(LAST_ID + 2) == is_open, "behind another token it may be spelled in another way"
    one.mask = None
    assert not one.is_ready(LAST_ID)
    one.keep_forced(LAST_ID, (7, 8))
    assert one.is_ready(LAST_ID)


def test_where_a_document_is_complete_nothing_needs_to_be_known() -> None:
    one = place()
    one.is_complete = True
    assert one.is_ready(LAST_ID)


def test_tokens_that_go_on_with_a_string_or_a_number_are_told_apart_by_what_they_add() -> None:
    alphabet = alphabet_of(BYTE_LEVEL)
    x_id, y_id, quote_id, digit_id, comma_id = (alphabet.of_byte(byte) for byte in b'xy"1,')
    lengths: dict[int, Place] = {}
    known = (b'{"a":', b'"', 0, b"{", False)
    string, longer = (Place(*known, length, alphabet, lengths) for length in (2, 3))
    lengths |= {2: string, 3: longer}
    assert string.keys[x_id] == string.keys[y_id] == -1 and string.behind(-1) is longer
    assert string.keys[quote_id] >= 0 and string.behind(string.keys[quote_id]) is None
    numbers = [Place(b'{"a":', text, 0, b"{", False, -1, alphabet, {}) for text in (b"1", b"12")]
    behind: dict[int, Place] = {}
    for number in numbers:
        number.begin_number(behind)
    numbers[0].next[numbers[0].keys[comma_id]] = longer
    numbers[0].counted[-numbers[0].keys[digit_id]] = numbers[1]
    assert numbers[1].behind(numbers[1].keys[comma_id]) is longer, "whatever its digits are"
    assert numbers[0].behind(numbers[0].keys[digit_id]) is numbers[1]
    assert numbers[1].behind(numbers[1].keys[digit_id]) is None
