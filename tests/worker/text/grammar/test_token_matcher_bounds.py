"""A model that writes on and on what makes a document longer does not keep it from being closed in time."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from tests.worker.text.grammar.compilers import BYTE_LEVEL, allowed_ids, alphabet_of, compiler_of, tokenizer_of
from worker.text.grammar.document_growth import UNTOLD, growth
from worker.text.grammar.grammar_text import grammar_text

NODE = {
    "type": "object",
    "properties": {"child": {"$ref": "#/$defs/node"}, "value": {"type": "number"}},
    "required": ["value"],
    "additionalProperties": False,
}
LISTED = {
    "type": "object",
    "properties": {"list": {"type": "array", "items": {"$ref": "#/$defs/node"}}, "child": {"type": "null"}},
    "required": ["child"],
    "additionalProperties": False,
    "$defs": {"node": NODE},
}
"""Of its objects one requires a name that another one only may have."""
LONG, LONGER = "r" * 80, "s" * 120


def written(schema: Any, begun: str, then: str, num_tokens: int) -> str:
    """What a model writes that wants ``begun``, and ``then`` again and again, and gets it where that is allowed."""
    tokenizer, matcher = tokenizer_of(BYTE_LEVEL), compiler_of(BYTE_LEVEL).compile(grammar_text("json_schema", schema))
    alphabet, ids = alphabet_of(BYTE_LEVEL), list[int]()
    wanted = (begun + then * num_tokens).encode()
    while len(ids) < num_tokens and not matcher.is_complete:
        num_left = num_tokens - len(ids)
        allowed = allowed_ids(matcher, tokenizer.vocab_size, num_left)
        wish = alphabet.of_byte(wanted[len(ids)])
        ids.append(matcher.take(wish if wish in allowed else allowed[0], num_left))
    return tokenizer.decode(ids, skip_special=True)


@pytest.mark.parametrize("num_tokens", [60, 100, 150, 200])
@pytest.mark.parametrize(
    ("schema", "begun", "then"),
    [
        ({"type": "object"}, '{"a":', "["),
        ({"type": "object", "properties": {"b": {"type": "object"}}}, '{"b":{"a":', "["),
        ({"type": "array"}, "[", '{"":'),
        ({"prefixItems": [{"type": "string"}]}, '["",', '{"":'),
        ({"items": {"$ref": "#/$defs/a", "required": [LONG]}, "$defs": {"a": {"type": "object"}}}, '[{"', "r"),
        ({"items": {"patternProperties": {"^x[a-z]{130}$": {}}, "additionalProperties": False}}, '[{"x', "a"),
        ({"items": {"type": "object", "anyOf": [{"required": [LONG]}], "required": [LONGER]}}, '[{"', "z"),
        (LISTED, '{"list":[', '{"value":0},'),
        (LISTED, '{"list":[', '{"child":'),
    ],
)
def test_a_document_is_closed_in_time(schema: Any, begun: str, then: str, num_tokens: int) -> None:
    jsonschema.validate(json.loads(written(schema, begun, then, num_tokens)), schema)


def test_a_value_of_any_kind_may_be_where_a_schema_says_nothing() -> None:
    silent, told = growth({"type": "object"}), growth({"type": "object", "additionalProperties": True})
    assert silent == told
    assert min(silent.of(b"["), growth({"type": "array"}).of(b"{")) >= 2
    assert growth({"type": "object", "properties": {"a": {}}, "additionalProperties": False}).of(b"[") >= 2


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a", "required": [LONG], "$defs": {"a": {"type": "object"}}},
        {"$ref": "#named", "$defs": {"a": {"$anchor": "named", "required": [LONG]}}},
        {"patternProperties": {"^x{99}$": {"type": "string"}}},
    ],
)
def test_what_a_schema_says_beside_a_reference_or_of_names_is_not_told(schema: Any) -> None:
    assert growth(schema) == UNTOLD


def test_words_for_people_beside_a_reference_say_nothing() -> None:
    schema = {"$ref": "#/$defs/a", "description": "who", "title": "A", "$defs": {"a": {"type": "object"}}}
    assert growth(schema) != UNTOLD


def test_an_object_has_what_it_and_each_kind_of_its_alternatives_requires() -> None:
    schema = {
        "type": "object",
        "required": ["a" * 10],
        "anyOf": [{"required": ["b" * 20]}, {"required": ["c" * 30], "anyOf": [{"required": ["d" * 40]}]}],
        "oneOf": [{"required": ["e" * 50]}],
    }
    assert growth(schema).of(b"{") >= 10 + 30 + 40 + 50


def test_a_name_that_is_required_elsewhere_may_make_the_closing_that_is_found_longer() -> None:
    assert growth(LISTED) == UNTOLD, "by any number of objects in each other"
    one, other = {"type": "string", "minLength": 50}, {"type": "null"}
    inner = {"type": "object", "properties": {"a": one, "b": other}, "required": ["b"]}
    schema = {"type": "object", "properties": {"a": other, "c": inner}, "required": ["a"]}
    told, alone = growth(schema), growth({**schema, "required": []})
    assert told.unfinished >= alone.unfinished + 50
    assert growth({**LISTED, "required": []}) != UNTOLD
