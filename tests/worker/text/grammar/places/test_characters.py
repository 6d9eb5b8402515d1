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
        ("日本".encode()[:-1], (1, b"\xc2")),
        ("本".encode()[:1], (0, b"\xe1")),
        ("ࠀ".encode()[:1], (0, b"\xe0")),
        ("ࠀ".encode()[:2], (0, b"\xc2")),
        ("😀".encode()[:3], (0, b"\xc2")),
        ("😀".encode()[:2], (0, b"\xe1")),
        ("😀".encode()[:1], (0, b"\xf0")),
        ("\U000e0000".encode()[:1], (0, b"\xf1")),
        (b'a"', None),
        (b"\\n", None),
        (b"\xff", None),
        (b"\x80a", None),
        (b"\xed\xa0", None),
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


def test_what_may_follow_is_the_same_in_all_characters_that_lack_the_same_bytes() -> None:
    beginning, num_words = matcher_of(record(a={"type": "string"})), -(-tokenizer_of(BYTE_LEVEL).vocab_size // 32)
    for text in ("日", "é😀"):
        for end in range(len(text.encode()) + 1):
            answer = beginning.copy()
            for byte in b'{"a":"x' + text.encode()[:end]:
                answer.take(answer._rule.alphabet.of_byte(byte), 400)
                mask_of(answer, 399, num_words)
    other, alone = beginning.copy(), without_places(beginning)
    for byte in '{"a":"x月ñ🙂'.encode():
        assert other.known_mask(400) is not None, byte
        np.testing.assert_array_equal(mask_of(other, 400, num_words), mask_of(alone, 400, num_words))
        for answer in (other, alone):
            answer.take(answer._rule.alphabet.of_byte(byte), 400)


@pytest.mark.parametrize("schema", [{"type": "string"}, {"type": "string", "minLength": 3, "maxLength": 12}])
def test_behind_beginnings_that_are_told_to_be_the_same_llguidance_allows_the_same(schema: dict[str, object]) -> None:
    beginning = matcher_of(record(a=schema))
    alphabet, state = beginning._rule.alphabet, beginning.state.deep_copy()
    assert state.consume_tokens([alphabet.of_byte(byte) for byte in b'{"a":"wxyz'])

    def mask_behind(half: bytes) -> bytes:
        behind = state.deep_copy()
        assert behind.consume_tokens([alphabet.of_byte(byte) for byte in half]), half
        return behind.compute_bitmask()

    seconds = [bytes([first, second]) for first in range(0xC2, 0xF5) for second in range(0x80, 0xC0)]
    thirds = [each + b"\x80" for each in seconds if each[0] >= 0xF0]
    counted = {
        half: count_characters(half) for half in [*(bytes([first]) for first in range(0xC2, 0xF5)), *seconds, *thirds]
    }
    halves = {half: known[1] for half, known in counted.items() if known is not None and known[1]}
    masks = {shortest: mask_behind(shortest) for shortest in set(halves.values())}
    assert len(masks) == 7 and len(halves) > 1000
    assert all(mask_behind(half) == masks[shortest] for half, shortest in halves.items())
