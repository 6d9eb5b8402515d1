"""Masks that were computed for another answer are those that an answer would have."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from tests.bench.structured_rates import SCHEMA
from tests.worker.text.grammar.compilers import BYTE_LEVEL, SENTENCE_PIECE, compiler_of, tokenizer_of
from tests.worker.text.grammar.schemas import make_schemas
from worker.engine.token_constraint import MaskRow
from worker.text.grammar import string_masks
from worker.text.grammar.grammar_text import grammar_text
from worker.text.grammar.string_masks import MaskCache, StringPlace
from worker.text.grammar.token_matcher import TokenMatcher

TEXT = {"type": "string", "maxLength": 9}


def matcher_of(schema: Any, name: str = BYTE_LEVEL, whitespace: str | None = None) -> TokenMatcher:
    return compiler_of(name).compile(grammar_text("json_schema", schema, whitespace))


def place_of(beginning: TokenMatcher, text: str) -> StringPlace:
    """Behind a text, a token for each of its bytes."""
    matcher = beginning.copy()
    alphabet = matcher._rule.alphabet
    for byte in text.encode():
        token_id = alphabet.of_byte(byte)
        assert matcher.take(token_id, 500) == token_id
    assert matcher.place is not None
    return matcher.place


def record(**properties: Any) -> Any:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


@pytest.mark.parametrize("name", [BYTE_LEVEL, SENTENCE_PIECE])
def test_a_known_mask_is_the_one_that_would_be_computed(name: str) -> None:
    size, num_known = tokenizer_of(name).vocab_size, 0
    for number, schema in enumerate([SCHEMA, SCHEMA["items"], *make_schemas(23, 12)]):
        beginning = matcher_of(schema, name)
        for answer in range(6 if beginning.place else 0):
            matcher, chance = beginning.copy(), random.Random(f"{number} {answer}")
            num_left = (beginning.min_tokens() or 0) + chance.choice([3, 60])
            while num_left and not matcher.is_complete:
                token_id = matcher.forced_id(num_left)
                if token_id is None:
                    mask = np.zeros(-(-size // 32), np.uint32)
                    matcher.state.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
                    known = matcher.place.known_mask()
                    if known is None:
                        matcher.place.keep_mask(mask)
                    else:
                        num_known += 1
                        np.testing.assert_array_equal(known, mask)
                    (ids,) = np.nonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
                    texts = [each for each in ids.tolist() if beginning._rule.alphabet.num_chars[each]]
                    token_id = chance.choice(texts if texts and chance.random() < 0.8 else ids.tolist())
                matcher.take(token_id, num_left)
                num_left -= 1
    assert num_known > 50


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('{"a":"x","b":"yz', '{"a":"other","b":"qq'),
        ('{"a":"x","b":"yz', '{ "a": "\\"\\\\",\n"b":"ee'),
        ('{"a":"x","b":"', '{"a":"","b":"'),
    ],
)
def test_two_answers_are_in_the_same_place_whatever_other_strings_hold(first: str, second: str) -> None:
    beginning = matcher_of(record(a={"type": "string"}, b=TEXT))
    one, other = place_of(beginning, first), place_of(beginning, second)
    one.keep_mask(np.arange(7, dtype=np.uint32))
    assert one.length == other.length >= 0
    assert other.known_mask() is not None


def test_behind_half_a_character_and_behind_an_escape_the_place_is_known_where_that_has_ended() -> None:
    beginning = matcher_of(record(a=TEXT, b=TEXT))
    matcher, lengths = beginning.copy(), []
    for byte in '{"a":"xé€y'.encode():
        matcher.take(beginning._rule.alphabet.of_byte(byte), 500)
        lengths.append(matcher.place.length)
    assert lengths[5:] == [0, 1, -1, 2, -1, -1, 3, 4]
    assert place_of(beginning, '{"a":"xé€y\\"\\nz').length == -1
    assert place_of(beginning, '{"a":"xé€y\\"z","b":"').length == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [('{"a":"x","b":"y', '{"a":"x","b":"yz'), ('{"a":"x', '{"a":"","b":"y'), ('{"a":"","c":["', '{"a":"","c":["x","')],
)
def test_places_are_told_apart(first: str, second: str) -> None:
    schema = record(a=TEXT, b=TEXT, c={"type": "array", "items": TEXT})
    schema["required"] = ["a"]
    beginning = matcher_of(schema)
    one, other = place_of(beginning, first), place_of(beginning, second)
    one.keep_mask(np.arange(7, dtype=np.uint32))
    assert other.length >= 0
    assert other.known_mask() is None


@pytest.mark.parametrize(
    "text",
    [
        '{"na',
        '{"name":"x","kind":"sm',
        '{"name":"x\\',
        '{"name":"x\\u00',
        '{"name":"x","kind":"small","other":{"x',
        "{",
    ],
)
def test_in_a_name_a_text_among_some_an_escape_and_elsewhere_no_mask_is_known(text: str) -> None:
    schema = record(name=TEXT, kind={"enum": ["small", "smaller"]}, other={"type": "object"})
    assert place_of(matcher_of(schema), text).length == -1


@pytest.mark.parametrize(
    "schema",
    [
        record(a={"type": "string", "pattern": "^a"}),
        record(a={"type": "string", "format": "date"}),
        record(a={"anyOf": [{"type": "string", "maxLength": 3}, {"const": "longer"}]}),
        {"anyOf": [record(a={"const": "x"}, b=TEXT), record(a={"type": "string"}, c=TEXT)]},
        record(a={"enum": ["".join(map(chr, string_masks.PROBES))]}, b=TEXT),
    ],
)
def test_where_a_text_may_decide_what_follows_no_masks_are_kept(schema: Any) -> None:
    assert matcher_of(schema).place is None


def test_where_a_caller_says_what_stands_between_the_parts_of_a_document_no_masks_are_kept() -> None:
    assert matcher_of(record(a=TEXT), whitespace=r"[ ]").place is None


def test_a_step_has_the_masks_that_were_kept_and_keeps_the_others() -> None:
    beginning = matcher_of(record(a=TEXT))
    answers = [beginning.copy() for _ in range(3)]
    size = -(-tokenizer_of(BYTE_LEVEL).vocab_size // 32)
    steps = []
    for text in (b'{"a":"x', b'{"a":"y'):
        for answer in answers:
            for byte in text if answer.place.length < 0 else ():
                answer.take(answer._rule.alphabet.of_byte(byte), 90)
        masks = np.full((3, size), 7, np.uint32)
        assert (
            answers[0].batch.write_masks([MaskRow(each, 80, row) for row, each in enumerate(answers)], masks.data) == {}
        )
        steps.append(masks)
    np.testing.assert_array_equal(*steps)
    assert answers[0].place.known_mask() is not None


def test_of_all_masks_those_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(string_masks, "MAX_BYTES", 80)
    cache, mask = MaskCache(), np.zeros(10, np.uint32)
    masks: Any = object()
    for length in range(3):
        cache.put((masks, b"", length), mask + length)
        assert cache.get((masks, b"", 0 if length < 2 else 2)) is not None
    assert [cache.get((masks, b"", length)) is not None for length in range(3)] == [True, False, True]
