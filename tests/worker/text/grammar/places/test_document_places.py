"""What another answer has found out of a place is what an answer would find out."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from orcd.errors import OrcdError
from tests.bench.structured_rates import SCHEMA
from tests.bench.structured_steps import synthetic_tokenizer
from tests.worker.text.grammar.compilers import BYTE_LEVEL, SENTENCE_PIECE, compiler_of, tokenizer_of, words_of
from tests.worker.text.grammar.schemas import make_schemas
from worker.text.grammar.grammar_compiler import GrammarCompiler
from worker.text.grammar.grammar_text import grammar_text
from worker.text.grammar.places import document_places
from worker.text.grammar.places.place import Place
from worker.text.grammar.token_matcher import TokenMatcher

TEXT = {"type": "string", "maxLength": 9}


def matcher_of(schema: Any, name: str = BYTE_LEVEL, whitespace: str | None = None) -> TokenMatcher:
    return compiler_of(name).compile(grammar_text("json_schema", schema, whitespace))


def matcher_behind(beginning: TokenMatcher, text: str) -> TokenMatcher:
    """Behind a text, a token for each of its bytes."""
    matcher = beginning.copy()
    alphabet = matcher._rule.alphabet
    for byte in text.encode():
        token_id = alphabet.of_byte(byte)
        assert matcher.take(token_id, 500) == token_id
    assert matcher.place is not None
    return matcher


def place_of(beginning: TokenMatcher, text: str) -> Place:
    return matcher_behind(beginning, text).place


def without_places(beginning: TokenMatcher) -> TokenMatcher:
    """Asks llguidance each time."""
    alone = TokenMatcher(beginning._lexers, beginning.batch, beginning._rule)
    alone.min_tokens()
    return alone


def mask_of(matcher: TokenMatcher, num_left: int, num_words: int) -> np.ndarray:
    (mask,) = matcher.batch.masks([(matcher, num_left)])
    return words_of(mask, num_words)


def record(**properties: Any) -> Any:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


@pytest.mark.parametrize("name", [BYTE_LEVEL, SENTENCE_PIECE])
def test_answers_are_those_that_llguidance_alone_would_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    num_words, num_tokens, known = -(-tokenizer_of(name).vocab_size // 32), 0, []
    goes_on = TokenMatcher.goes_on
    monkeypatch.setattr(TokenMatcher, "goes_on", lambda *asked: known.append(goes_on(*asked)) or known[-1])
    schemas = [SCHEMA, SCHEMA["items"], *make_schemas(23, 12)]
    for number, schema in enumerate(schemas):
        beginning = matcher_of(schema, name)
        for answer in range(8 if beginning.place else 0):
            matcher, alone = beginning.copy(), without_places(beginning)
            chance = random.Random(f"{number} {answer}")
            num_left = (beginning.min_tokens() or 0) + chance.choice([3, 30, 60])
            while num_left and not matcher.is_complete:
                forced_id = matcher.forced_id(num_left)
                assert forced_id == alone.forced_id(num_left)
                mask = mask_of(matcher, num_left, num_words)
                np.testing.assert_array_equal(mask, mask_of(alone, num_left, num_words))
                (ids,) = np.nonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
                texts = [each for each in ids.tolist() if beginning._rule.alphabet.num_chars[each]]
                token_id = chance.choice(texts if texts and chance.random() < 0.8 else ids.tolist())
                assert matcher.take(token_id, num_left) == alone.take(token_id, num_left)
                assert matcher.is_complete == alone.is_complete
                num_left -= 1
                num_tokens += 1
    assert num_tokens > 3000
    assert sum(known) > num_tokens / 4


@pytest.mark.parametrize(
    "text", ['{"a":"x\\n', '{"a":"\\"', '{"a":"x", "b":[1', '{"a":"x","b":[ -1.5e3 ,12', '{ "a":"é","b":[]', '{"a']
)
def test_behind_escapes_numbers_and_white_space_masks_are_those_of_llguidance(text: str) -> None:
    schema = record(a=TEXT, b={"type": "array", "items": {"type": "number"}})
    beginning, num_words = matcher_of(schema), -(-tokenizer_of(BYTE_LEVEL).vocab_size // 32)
    masks = [mask_of(matcher_behind(beginning, text), 400, num_words) for _ in range(2)]
    alone = without_places(beginning)
    for byte in text.encode():
        alone.take(alone._rule.alphabet.of_byte(byte), 500)
    for mask in masks:
        np.testing.assert_array_equal(mask, mask_of(alone, 400, num_words))


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
    assert one is other
    assert one.length >= 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('[{"a":"x","b":null},{"a":"', '[{"a":"x","b":[1,2]},{"a":"'),
        ('[[{"a":"x"}],{"a":"', '[[],{"a":"'),
    ],
)
def test_two_answers_are_in_the_same_place_whatever_objects_and_arrays_that_have_ended_hold(
    first: str, second: str
) -> None:
    item = record(a=TEXT, b={"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "number"}}]})
    item["required"] = ["a"]
    schema = {"type": "array", "items": {"anyOf": [item, {"type": "array", "items": item}]}}
    beginning = matcher_of(schema)
    one, other = place_of(beginning, first), place_of(beginning, second)
    assert one is other
    assert one.length >= 0


def test_what_closes_a_document_is_the_same_however_much_white_space_an_answer_has_written() -> None:
    beginning = matcher_of(record(a=TEXT, b=TEXT))
    closings = [place_of(beginning, '{"a":"x",' + " " * number).closings for number in (1, 2, 5)]
    assert closings[0] is closings[1] is closings[2]
    assert place_of(beginning, '{"a":"x"' + " ").closings is not closings[0]


def test_behind_half_a_character_and_behind_an_escape_the_place_is_known_where_that_has_ended() -> None:
    beginning = matcher_of(record(a=TEXT, b=TEXT))
    matcher, lengths = beginning.copy(), []
    for byte in '{"a":"xé€y'.encode():
        matcher.take(beginning._rule.alphabet.of_byte(byte), 500)
        lengths.append(matcher.place.length)
    assert lengths[5:] == [0, 1, -1, 2, -1, -1, 3, 4]
    assert place_of(beginning, '{"a":"xé€y\\"\\nz').length == 7
    assert place_of(beginning, '{"a":"xé€y\\"\\').length == -1
    assert place_of(beginning, '{"a":"xé€y\\"z","b":"').length == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('{"a":"x","b":"y', '{"a":"x","b":"yz'),
        ('{"a":"x', '{"a":"","b":"y'),
        ('{"a":"","c":["', '{"a":"","c":["x","'),
    ],
)
def test_places_are_told_apart(first: str, second: str) -> None:
    schema = record(a=TEXT, b=TEXT, c={"type": "array", "items": TEXT})
    schema["required"] = ["a"]
    beginning = matcher_of(schema)
    one, other = place_of(beginning, first), place_of(beginning, second)
    assert other.length >= 0
    assert one is not other


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
def test_in_a_name_a_text_among_some_an_escape_and_elsewhere_the_place_is_in_no_string_with_any_text(text: str) -> None:
    schema = record(name=TEXT, kind={"enum": ["small", "smaller"]}, other={"type": "object"})
    assert place_of(matcher_of(schema), text).length == -1


@pytest.mark.parametrize(
    "schema",
    [
        record(a={"type": "string", "pattern": "^a"}),
        record(a={"type": "string", "format": "date"}),
        record(a={"anyOf": [{"type": "string", "maxLength": 3}, {"const": "longer"}]}),
        {"type": "array", "items": {"enum": [{"a": "x", "b": "y"}, {"a": "p", "b": "q"}]}},
        {"anyOf": [record(a={"const": "x"}, b=TEXT), record(a={"type": "string"}, c=TEXT)]},
        record(a={"enum": ["".join(map(chr, document_places.PROBES))]}, b=TEXT),
    ],
)
def test_where_a_text_may_decide_what_follows_no_places_are_known(schema: Any) -> None:
    assert matcher_of(schema).place is None


def test_where_a_caller_says_what_stands_between_the_parts_of_a_document_no_places_are_known() -> None:
    assert matcher_of(record(a=TEXT), whitespace=r"[ ]").place is None


def test_a_step_has_the_masks_that_were_kept_and_keeps_the_others() -> None:
    beginning = matcher_of(record(a=TEXT))
    answers = [beginning.copy() for _ in range(3)]
    steps = []
    for text in (b'{"a":"x', b'{"a":"y'):
        for answer in answers:
            for byte in text if answer.place.length < 0 else ():
                answer.take(answer._rule.alphabet.of_byte(byte), 90)
        steps.append(answers[0].batch.masks([(each, 80) for each in answers]))
    assert len({*steps[0], *steps[1]}) == 1, "the same mask each time"
    assert answers[0].place.mask is not None


def test_white_space_in_different_tokens_leads_to_the_same_place() -> None:
    beginning = matcher_of(record(a=TEXT))
    places = {place_of(beginning, f'{{{space}"a"') for space in ("", " ", "\n", " \n", "\n ")}
    assert len(places) == 1
    spaces = [place_of(beginning, f"{{{space}") for space in (" ", "\n", " \n", "\n\n")]
    assert spaces[0] is spaces[1] is not spaces[2] is spaces[3]


def test_a_token_that_may_not_come_is_refused_where_its_place_is_known() -> None:
    beginning = matcher_of(record(a=TEXT))
    known = matcher_behind(beginning, '{"a":"123456789')
    mask_of(known, 90, -(-tokenizer_of(BYTE_LEVEL).vocab_size // 32))
    other = matcher_behind(beginning, '{"a":"123456789')
    assert other.place is known.place
    with pytest.raises(OrcdError):
        other.take(beginning._rule.alphabet.of_byte(ord("x")), 90)


@pytest.mark.parametrize("num_known", [0, 1])
def test_in_a_string_of_which_all_was_forgotten_meanwhile_answers_go_on(num_known: int) -> None:
    beginning, num_words = matcher_of(record(a=TEXT)), -(-tokenizer_of(BYTE_LEVEL).vocab_size // 32)
    answers = [matcher_behind(beginning, '{"a":"xy') for _ in range(2)]
    mask_of(answers[0], 400, num_words)
    beginning.places.forget()
    if num_known:
        matcher_behind(beginning, '{"a":"')
    letter_id, alone = beginning._rule.alphabet.of_byte(ord("z")), without_places(beginning)
    for byte in b'{"a":"xyz':
        alone.take(alone._rule.alphabet.of_byte(byte), 500)
    for answer in answers:
        mask_of(answer, 400, num_words)
        assert answer.take(letter_id, 400) == letter_id
        np.testing.assert_array_equal(mask_of(answer, 399, num_words), mask_of(alone, 399, num_words))
    assert place_of(beginning, '{"a":"123') is answers[0].place


def test_behind_half_an_escape_answers_are_in_the_same_place_only_with_the_same_text_before_it() -> None:
    beginning = matcher_of(record(a=TEXT))
    answer = matcher_behind(beginning, '{"a":"xy')
    beginning.places.forget()
    backslash_id = beginning._rule.alphabet.of_byte(ord("\\"))
    assert answer.take(backslash_id, 400) == backslash_id
    assert place_of(beginning, '{"a":"xyzabcde\\') is not answer.place


def test_a_token_that_begins_a_string_with_half_an_escape_tells_nothing_of_escapes_further_on() -> None:
    tokenizer = synthetic_tokenizer()
    beginning = GrammarCompiler(tokenizer).compile(grammar_text("json_schema", record(a=TEXT)))
    num_words = -(-tokenizer.vocab_size // 32)
    first, (token_id,) = matcher_behind(beginning, '{"a":'), tokenizer.encode('"\\', add_special=False)
    assert first.take(token_id, 400) == token_id
    mask_of(first, 400, num_words)
    further = matcher_behind(beginning, text := '{"a":"12345678\\')
    alone = without_places(beginning)
    for byte in text.encode():
        alone.take(alone._rule.alphabet.of_byte(byte), 500)
    np.testing.assert_array_equal(mask_of(further, 400, num_words), mask_of(alone, 400, num_words))


def test_behind_an_escape_in_one_token_answers_know_the_same_whether_or_not_others_were_there_before() -> None:
    tokenizer = synthetic_tokenizer()
    beginning = GrammarCompiler(tokenizer).compile(grammar_text("json_schema", record(a=TEXT)))
    (token_id,) = tokenizer.encode('\\"', add_special=False)
    answers = [matcher_behind(beginning, '{"a":"xy') for _ in range(2)]
    for answer in answers:
        mask_of(answer, 400, -(-tokenizer.vocab_size // 32))
        assert answer.take(token_id, 400) == token_id
    assert len({answer.place for answer in answers}) == len({answer._bound for answer in answers}) == 1
