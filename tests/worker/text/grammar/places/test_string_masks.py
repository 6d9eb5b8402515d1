"""Masks that another string has told are those that llguidance computes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from tests.worker.text.grammar.compilers import BYTE_LEVEL, SENTENCE_PIECE, compiler_of
from worker.engine.token_constraint import TokenMask
from worker.text.grammar import matcher_batch
from worker.text.grammar.grammar_text import grammar_text
from worker.text.grammar.places.string_masks import StringMasks
from worker.text.grammar.token_matcher import TokenMatcher

STRINGS: list[dict[str, Any]] = [
    {"type": "string", "maxLength": 12},
    {"type": "string", "maxLength": 12},
    {"type": "string", "maxLength": 30},
    {"type": "string", "minLength": 3, "maxLength": 12},
    {"type": "string", "minLength": 5, "maxLength": 13},
    {"type": "string"},
    {"type": "string", "minLength": 4},
    {"anyOf": [{"type": "string", "maxLength": 12}, {"type": "null"}]},
]


def mask(number: int) -> TokenMask:
    return TokenMask(bytes([number]))


@pytest.mark.parametrize("name", [BYTE_LEVEL, SENTENCE_PIECE])
@pytest.mark.parametrize("order", range(6))
def test_they_are_those_of_llguidance_in_whatever_order_strings_are_met(name: str, order: int) -> None:
    chance = random.Random(order)
    properties = {f"p{number}": each for number, each in enumerate(chance.sample(STRINGS, len(STRINGS)))}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    beginning = compiler_of(name).compile(grammar_text("json_schema", schema))
    alphabet = beginning._rule.alphabet
    assert beginning.place is not None
    computed, told_by_others = set(), set()
    for _ in range(25):
        matcher = beginning.copy()
        for token_id in text_ids(matcher, chance, [*properties.values()]):
            place = matcher.place
            if place.length >= 0 and matcher.forced_id(900) is None:
                is_known = matcher.known_mask(900) is not None
                (told_by_others if is_known and place not in computed else computed).add(place)
                (told,) = matcher.batch.masks([(matcher, 900)])
                assert isinstance(told, TokenMask)
                assert told.words == alone(matcher), (place.outline, place.length)
            assert matcher.take(token_id, 900) == token_id
        assert matcher.is_complete
    assert len(told_by_others) > 10
    assert alphabet.most_bytes >= max(alphabet.num_chars)


def text_ids(matcher: TokenMatcher, chance: random.Random, strings: list[dict[str, Any]]) -> list[int]:
    """A document, in tokens of one byte, and of several inside of strings."""
    alphabet = matcher._rule.alphabet
    by_chars = [each for each, num in enumerate(alphabet.num_chars) if 1 < num < 9 and alphabet.texts[each].isalpha()]
    ids: list[int] = []
    for number, each in enumerate(strings):
        ids += [alphabet.of_byte(byte) for byte in f'{"," if number else "{"}"p{number}":"'.encode()]
        left = chance.randint(0, each.get("anyOf", [each])[0].get("maxLength", 40))
        least = max(left, each.get("minLength", 0))
        text: list[int] = []
        length = 0
        while length < least:
            token_id = chance.choice(by_chars) if chance.random() < 0.5 else alphabet.of_byte(ord("x"))
            if length + alphabet.num_chars[token_id] <= least:
                text.append(token_id)
                length += alphabet.num_chars[token_id]
        ids += [*text, alphabet.quote_id]
    return [*ids, alphabet.of_byte(ord("}"))]


def alone(matcher: TokenMatcher) -> bytes:
    words = np.zeros(matcher.batch.num_words, np.uint32)
    matcher.write_mask(words.data, 900)
    return words.tobytes()


def test_few_masks_of_a_string_are_computed_where_another_one_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = {name: {"type": "string", "maxLength": 20} for name in "abc"}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    matcher = compiler_of(BYTE_LEVEL).compile(grammar_text("json_schema", schema)).copy()
    computed: list[int] = []
    compute = matcher_batch.MatcherBatch._compute
    monkeypatch.setattr(
        matcher_batch.MatcherBatch, "_compute", lambda *given: computed.append(len(given[2])) or compute(*given)
    )
    numbers = []
    for name in "abc":
        computed.clear()
        for byte in f'{"{" if name == "a" else ","}"{name}":"xxxxxxxxxxxxxxxx"'.encode():
            if matcher.place.length >= 0:
                matcher.batch.masks([(matcher, 900)])
            matcher.take(matcher._rule.alphabet.of_byte(byte), 900)
        numbers.append(sum(computed))
    assert numbers == [6, 1, 1], "of the others one that tells whether they are alike"


def test_what_is_known_of_a_string_holds_only_where_fewer_characters_may_come() -> None:
    families: dict = {}
    first, second = (StringMasks(most, True, 16, 4, families) for most in (10, 12))
    first.learn(0, mask(1), may_end=True)
    first.learn(4, mask(2), may_end=True)
    assert [first.known(length) for length in (0, 4, 5)] == [first.alike.masks[10], first.alike.masks[6], None]
    second.learn(6, first.alike.masks[6], may_end=True)  # where both may have six characters more
    assert second.known(2) is None, "there the first one might end otherwise"
    first.learn(8, shared := mask(3), may_end=True)
    assert second.known(10) is shared
    second.learn(2, mask(4), may_end=True)
    assert second.known(2) is not first.known(0)
    assert second.known(10) is shared


def test_nothing_is_told_by_a_mask_before_the_string_may_end() -> None:
    families: dict = {}
    first, second = (StringMasks(30, True, 16, 4, families) for _ in range(2))
    early, far, near = mask(1), mask(2), mask(3)
    first.learn(0, early, may_end=False)
    assert first.known(0) is None and not families
    first.learn(3, far, may_end=True)
    assert [first.known(length) for length in (0, 2, 3, 14)] == [None, None, far, far]
    second.learn(5, far, may_end=True)
    first.learn(20, near, may_end=True)
    assert [second.known(length) for length in (4, 5, 20)] == [None, far, near]


def test_of_a_string_without_an_end_that_is_known_only_that_it_is_far_is_told() -> None:
    endless = StringMasks(50, False, 16, 4, {})
    assert [endless.room(length) for length in (0, 34, 35, 60)] == [16, 16, None, None]
    endless.learn(0, far := mask(1), may_end=True)
    endless.learn(40, mask(2), may_end=True)
    assert endless.known(30) is far
    assert endless.known(40) is None


def test_the_middle_of_a_character_has_masks_of_its_own() -> None:
    families: dict = {}
    first, second = (StringMasks(30, True, 16, 4, families) for _ in range(2))
    first.learn_half(4, b"\xe6", mask(1))
    assert first.known(4, b"\xe6") is None, "it is not known yet which strings are alike"
    first.learn(3, far := mask(2), may_end=True)
    second.learn(5, far, may_end=True)
    first.learn_half(4, b"\xe6", half := mask(3))
    assert [second.known(length, b"\xe6") for length in (4, 5, 26, 27)] == [None, half, half, None]
    assert second.known(5, b"\xe7") is None and second.known(5) is not half


def test_a_string_has_room_where_it_may_end_and_go_on() -> None:
    string = StringMasks(30, True, 16, 4, {})
    assert not string.has_room(10, 1)
    string.learn(3, mask(1), may_end=True)
    assert all(string.has_room(*asked) for asked in ((3, 16), (20, 10)))
    assert not any(string.has_room(*asked) for asked in ((2, 1), (3, 17), (20, 11)))
