"""What may follow behind white space is told by what may follow behind less of it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.worker.text.grammar.compilers import BYTE_LEVEL, alphabet_of, tokenizer_of
from tests.worker.text.grammar.places.test_document_places import (
    TEXT,
    mask_of,
    matcher_behind,
    matcher_of,
    place_of,
    record,
    without_places,
)
from worker.engine.token_constraint import TokenMask
from worker.text.grammar.places.white_space import FittingMasks, SpaceMasks

NUM_WORDS = -(-tokenizer_of(BYTE_LEVEL).vocab_size // 32)
PARTS = ['{"a"', '{"a":', '{"a":"x"', '{"a":"x",', "{", '{"a":"x","b":[', '{"a":"x","b":[1', '{"a":"x","b":[true,']


@pytest.mark.parametrize("text", PARTS)
def test_masks_and_what_must_follow_are_those_of_llguidance_however_much_there_is(text: str) -> None:
    schema = record(a=TEXT, b={"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "boolean"}]}})
    beginning = matcher_of(schema)
    for number in (2, 1, 7, 3, 8):
        told, alone = matcher_behind(beginning, text + " " * number), without_places(beginning)
        for byte in (text + "\n" * number).encode():
            alone.take(alone._rule.alphabet.of_byte(byte), 500)
        assert told.forced_id(400) == alone.forced_id(400)
        np.testing.assert_array_equal(mask_of(told, 400, NUM_WORDS), mask_of(alone, 400, NUM_WORDS))


def test_behind_more_of_it_nothing_is_asked_of_llguidance() -> None:
    beginning = matcher_of(record(a=TEXT, b=TEXT))
    mask_of(matcher_behind(beginning, '{"a":"x", '), 400, NUM_WORDS)
    other = matcher_behind(beginning, '{"a":"y", ')
    num_behind = len(other._behind)
    for number in range(1, 6):
        assert other.goes_on(beginning._rule.alphabet.of_byte(ord("\n")), 400 - number, and_is_ready=True)
    assert len(other._behind) == num_behind + 5


def test_equal_masks_are_the_same_object_and_one_behind_more_tells_nothing_of_less() -> None:
    made: dict[bytes, TokenMask] = {}
    alphabet = alphabet_of(BYTE_LEVEL)
    masks = SpaceMasks(FittingMasks(alphabet, lambda words: made.setdefault(words, TokenMask(words))))
    assert masks.known(1) is None
    every = TokenMask(b"\xff" * 4 * NUM_WORDS)
    masks.learn(2, every)
    assert masks.known(1) is None and masks.known(2) is every
    assert masks.known(5) is masks.known(5)
    fewer = [np.unpackbits(np.frombuffer(masks.known(each).words, np.uint8)).sum() for each in (2, 3, 8)]
    assert fewer == sorted(fewer, reverse=True)


def test_what_a_token_leads_to_is_the_same_behind_any_white_space() -> None:
    beginning = matcher_of(record(a=TEXT, b=TEXT))
    alphabet = beginning._rule.alphabet
    places = {number: place_of(beginning, '{"a"' + "\n" * number) for number in range(9)}
    first, shape = place_of(beginning, '{"a" :'), alphabet.shapes[alphabet.of_byte(ord(":"))]
    assert all(place.next.get(shape) is first for place in places.values())
    assert places[1].space.places == {number: place for number, place in places.items() if number}
    beginning.places.forget()
    assert not places[1].next and not places[1].space.places


def test_equal_masks_are_cut_once_wherever_they_are() -> None:
    fitting = FittingMasks(alphabet_of(BYTE_LEVEL), TokenMask)
    every = TokenMask(b"\xff" * 4 * NUM_WORDS)
    first, second = SpaceMasks(fitting), SpaceMasks(fitting)
    first.learn(0, every)
    second.learn(1, every)
    assert first.known(5) is second.known(5) is not first.known(4)
    fitting.forget()
    assert SpaceMasks(fitting).known(5) is None and fitting.of(every, 3) is not first.known(5)
