"""What is left of a closing is found out once, and is what the texts of its tokens tell."""

from __future__ import annotations

import pytest

from tests.worker.text.grammar.compilers import BYTE_LEVEL, alphabet_of
from worker.text.grammar import known_closing
from worker.text.grammar.alphabet import Alphabet
from worker.text.grammar.known_closing import KnownClosing, KnownClosings


@pytest.fixture(scope="module")
def alphabet() -> Alphabet:
    return alphabet_of(BYTE_LEVEL)


def ids_of(alphabet: Alphabet, text: str) -> list[int]:
    return [alphabet.of_byte(byte) or 0 for byte in text.encode()]


def test_equal_closings_are_the_same_object(alphabet: Alphabet) -> None:
    closings = KnownClosings(alphabet)
    closing = closings.of(ids_of(alphabet, '"}'))
    assert closing is closings.of(tuple(ids_of(alphabet, '"}')))
    assert (closing.length, closing.first_id) == (2, alphabet.quote_id)
    assert closings.of(()).first_id is None


@pytest.mark.parametrize("most", [1, 4096])
def test_what_is_left_is_told_the_same_each_time(
    alphabet: Alphabet, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_closing, "MAX_CLOSINGS", most)
    monkeypatch.setattr(known_closing, "MAX_REMAINDERS", most)
    closing = KnownClosings(alphabet).of(ids_of(alphabet, '","b":0}'))
    for _ in range(2):
        for token_id in ids_of(alphabet, '",}x0 '):
            left = closing.remainder(token_id)
            told = alphabet.remainder(closing.token_ids, token_id)
            assert (None if left is None else left.token_ids) == told
            if told is None:
                told = closing.token_ids
                if alphabet.kinds[token_id]:
                    told = alphabet.likely_remainder(told, token_id)
            assert closing.likely_remainder(token_id).token_ids == told


def test_of_a_closing_the_end_is_told_that_is_tried_first_and_closes_the_document(alphabet: Alphabet) -> None:
    closings = KnownClosings(alphabet)
    closing, found = closings.of(ids_of(alphabet, '0,"a":0}')), closings.of(ids_of(alphabet, ',"a":0}'))
    closes: dict[KnownClosing, bool] = {}
    assert closing.known_end(closes) is None
    closing.note_end(found, closes)
    assert closing.known_end(closes) is found
    assert [closes.get(closings.of(end)) for end in (ids_of(alphabet, '":0}'), closing.token_ids)] == [False, None]
    assert closings.of(ids_of(alphabet, '":0,"a":0}')).known_end(closes) is None, "nobody has tried all before it"
    assert closings.of(()).known_end(closes) is None
    in_string = closings.of(ids_of(alphabet, '"}]'))
    in_string.note_end(in_string, closes)
    assert in_string.known_end(closes) is in_string, "what ends a string is tried first"


def test_an_end_is_known_by_its_tokens(alphabet: Alphabet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_closing, "MAX_CLOSINGS", 1)
    closings = KnownClosings(alphabet)
    closing, closes = closings.of(ids_of(alphabet, "0}")), dict[KnownClosing, bool]()
    assert closing.known_end(closes) is None
    closing.note_end(closings.of(ids_of(alphabet, "0}")), closes)
    assert [each.token_ids for each, said in closes.items() if said] == [closing.token_ids]


def test_where_tokens_end_a_string_at_the_latest(alphabet: Alphabet) -> None:
    closings = KnownClosings(alphabet)
    most = [closings.of(ids_of(alphabet, text)).most_text for text in ('0,"a":"', '"}]', '0,"ab":0,"c":', "012345678")]
    assert most == [5, 3, 6, 9]
