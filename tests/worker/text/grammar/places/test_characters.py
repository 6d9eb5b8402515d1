from __future__ import annotations

import numpy as np
import pytest

from tests.worker.text.grammar.compilers import BYTE_LEVEL, SENTENCE_PIECE, tokenizer_of
from tests.worker.text.grammar.places.test_document_places import (
    TEXT,
    mask_of,
    matcher_of,
    place_of,
    record,
    without_places,
)
from worker.text.grammar.places.characters import count_characters


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        (b"", (0, b"")),
        (b"abc", (3, b"")),
        ("日本".encode(), (2, b"")),
        ("日本".encode()[:-1], (1, "本".encode()[:-1])),
        ("😀".encode()[:3], (0, "😀".encode()[:3])),
        (b'a"', None),
        (b"\\n", None),
        (b"\xff", None),
        (b"\x80a", None),
    ],
)
def test_characters_are_counted_and_half_a_one_is_left(text: bytes, counted: tuple[int, bytes] | None) -> None:
    assert count_characters(text) == counted


@pytest.mark.parametrize("name", [BYTE_LEVEL, SENTENCE_PIECE])
def test_in_the_middle_of_a_character_nothing_is_asked_of_llguidance_twice(name: str) -> None:
    beginning, num_words = (
        matcher_of(record(a=TEXT, b={"type": "string"}), name),
        -(-tokenizer_of(name).vocab_size // 32),
    )
    place_of(beginning, '{"a":"x","b":"y')
    for text in ('{"a":"日é","b":"', '{"a":"x","b":"日a😀é'):
        alone, byte_ids = without_places(beginning), []
        matchers = [beginning.copy(), beginning.copy()]
        for byte in text.encode():
            token_id = beginning._rule.alphabet.of_byte(byte)
            byte_ids.append(token_id)
            for matcher in matchers:
                np.testing.assert_array_equal(mask_of(matcher, 400, num_words), mask_of(alone, 400, num_words))
                matcher.take(token_id, 400)
            alone.take(token_id, 400)
        third = beginning.copy()
        for byte, token_id in zip(text.encode(), byte_ids, strict=True):
            assert third.known_mask(400) is not None
            if byte < 0x80:
                third.take(token_id, 400)
            else:
                assert third.goes_on(token_id, 400)
