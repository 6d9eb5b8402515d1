from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher

from tests.worker.text.grammar.compilers import BYTE_LEVEL, alphabet_of, compiler_of, tokenizer_of
from worker.text.grammar.closing import Closing, required_names
from worker.text.grammar.grammar_text import grammar_text

TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"child": {"$ref": "#/$defs/node"}, "value": {"type": "integer", "minimum": 100}},
            "required": ["value"],
            "additionalProperties": False,
        }
    },
}

POSITIVE = {
    "type": "object",
    "properties": {"share": {"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "name": {"type": "string"}},
    "required": ["share", "name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("schema", "begun", "most"),
    [
        ({"type": "object"}, "", 2),
        ({"type": "object"}, '{"a": [[{"b": "text', 8),
        (TREE, "", 12),
        (TREE, '{"child": {"child": {"chi', 60),
        ({"type": "array", "minItems": 5, "items": {"pattern": "^[a-z]{3}[0-9]{2}$", "type": "string"}}, "", 50),
        ({"type": "array", "items": {"type": "integer", "multipleOf": 7, "minimum": 100}, "minItems": 1}, "", 30),
        ({"enum": ["日本", 1]}, '"', 10),
        (POSITIVE, "", 40),
        (POSITIVE, '{"share": 0.00', 30),
        ({"type": "string", "format": "email"}, "", 12),
        ({"type": "string", "format": "email"}, '"somebody', 12),
        ({"type": "string", "format": "duration"}, "", 24),
        ({"type": "string", "pattern": r"^[\w.+-]+@[\w-]+\.[\w.-]+$"}, "", 12),
        ({"type": "array", "items": {"type": "string", "pattern": "^[A-Z].{7,}[0-9]$"}, "minItems": 3}, "", 96),
    ],
)
def test_a_document_that_has_begun_is_closed_with_few_tokens(schema: Any, begun: str, most: int) -> None:
    tokenizer = tokenizer_of(BYTE_LEVEL)
    matcher = LLMatcher(compiler_of(BYTE_LEVEL)._tokens, grammar_text("json_schema", schema))
    assert matcher.consume_tokens(tokenizer.encode(begun, add_special=False))
    before = matcher.compute_bitmask()
    found = Closing(alphabet_of(BYTE_LEVEL), required_names(schema)).search(matcher)
    assert found is not None
    assert len(found) <= most
    assert matcher.compute_bitmask() == before, "the matcher is where it was"
    jsonschema.validate(json.loads(begun + tokenizer.decode(found)), schema)


@pytest.mark.parametrize("begun", ["", "any <", "a </th", "</end></think"])
def test_a_text_that_may_go_on_with_anything_is_ended_by_its_suffix(begun: str) -> None:
    tokenizer = tokenizer_of(BYTE_LEVEL)
    grammar = grammar_text("grammar", 'start: text "!"\ntext[suffix="</think>"]: /(.|\\n)*/')
    matcher = LLMatcher(compiler_of(BYTE_LEVEL)._tokens, grammar)
    matcher.consume_tokens(tokenizer.encode(begun, add_special=False))
    assert Closing(alphabet_of(BYTE_LEVEL)).search(matcher) is None
    found = Closing(alphabet_of(BYTE_LEVEL), suffixes=[b"</end>", b"</think>"]).search(matcher)
    assert found is not None
    assert tokenizer.decode(found).endswith("</think>!")


def test_names_are_those_that_some_object_must_have() -> None:
    schema = {"required": ["a"], "properties": {"b": {"anyOf": [{"required": ['c"', "d"]}]}}}
    assert required_names(schema) == {b"a", b'c\\"', b"d"}


PAIRS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize(
    ("schema", "begun", "then", "left"),
    [
        ({"type": "object"}, '{"a": "te', "xt", '"}'),
        ({"type": "object"}, '{"a": "te', 'xt"', "}"),
        ({"type": "object"}, '{"a": "te', 'xt"}', ""),
        ({"type": "object"}, '{"a": "te', "xt\\", '""}'),
        ({"type": "object"}, '{"a": [[1, 2', "3", "]]}"),
        ({"type": "object"}, '{"a": [[1, 2', "]", "]}"),
        ({"type": "object"}, '{"a": 1', ".", "0}"),
        ({"type": "object"}, '{"a": ', "[", "]}"),
        (PAIRS, '[{"a": 1, "b": 2}', ", ", None),
    ],
)
def test_an_earlier_closing_is_renewed_where_that_is_told_in_a_moment(
    schema: Any, begun: str, then: str, left: str | None
) -> None:
    tokenizer = tokenizer_of(BYTE_LEVEL)
    matcher = LLMatcher(compiler_of(BYTE_LEVEL)._tokens, grammar_text("json_schema", schema))
    closing = Closing(alphabet_of(BYTE_LEVEL), required_names(schema))
    assert matcher.consume_tokens(tokenizer.encode(begun, add_special=False))
    earlier = closing.search(matcher)
    assert earlier
    assert matcher.consume_tokens(tokenizer.encode(then, add_special=False))
    before = matcher.compute_bitmask()
    renewed = closing.renewed(matcher, tuple(earlier))
    assert (None if renewed is None else tokenizer.decode(renewed)) == left
    assert matcher.compute_bitmask() == before


def test_a_value_that_is_in_a_whole_document_closes_one_that_begins_anew() -> None:
    tokenizer = tokenizer_of(BYTE_LEVEL)
    grammar = grammar_text("json_schema", {**PAIRS, "minItems": 2})
    matcher = LLMatcher(compiler_of(BYTE_LEVEL)._tokens, grammar)
    closing = Closing(alphabet_of(BYTE_LEVEL), required_names(PAIRS))
    whole = tuple(closing.search(matcher) or ())
    assert tokenizer.decode(whole) == '[{"a":0,"b":0},{"a":0,"b":0}]'
    assert matcher.consume_tokens(tokenizer.encode('[{"a": 1, "b": 2}, {"a": 3, "b": 4}, ', add_special=False))
    assert closing.renewed(matcher, ()) is None
    assert tokenizer.decode(closing.renewed(matcher, (), whole) or ()) == '{"a":0,"b":0}]'
