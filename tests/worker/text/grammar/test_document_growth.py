"""The bound of the growth holds for every token of real documents."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.worker.text.grammar.compilers import BYTE_LEVEL, allowed_ids, compiler_of, tokenizer_of
from tests.worker.text.grammar.schemas import make_schemas
from worker.text.grammar.document_growth import growth
from worker.text.grammar.grammar_text import grammar_text

NAME = {"type": "string", "minLength": 3}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "a{50}"},
        {"allOf": [NAME]},
        {"type": "object", "properties": {"a": {"format": "date"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"required": ["b"], "properties": {"b": {"$ref": "#/$defs/a"}}}}},
        {"$ref": "#/$defs/nowhere"},
        {"type": "string", "$defs": 5},
        {"type": "string", "$defs": {"a": {"minLength": "3"}, "b": {"enum": []}}},
    ],
)
def test_what_a_schema_does_not_tell_has_no_bound(schema: Any) -> None:
    assert growth(schema) is None


def test_the_bound_counts_what_a_value_must_have() -> None:
    small = growth({"type": "object", "properties": {"a": NAME}, "required": ["a"]})
    large = growth({"type": "object", "properties": {"a": {"type": "array", "items": NAME, "minItems": 9}}})
    assert small is not None
    assert large is not None
    assert large > small + 8 * 5


def test_no_token_lengthens_the_closing_by_more() -> None:
    tokenizer, compiler = tokenizer_of(BYTE_LEVEL), compiler_of(BYTE_LEVEL)
    num_checked = 0
    for number, schema in enumerate(make_schemas(23, 25)):
        bound = growth(schema)
        if bound is None:
            continue
        chance = random.Random(number)
        matcher = compiler.compile(grammar_text("json_schema", schema))
        before = matcher.min_tokens()
        for _ in range(60):
            if matcher.is_complete or before is None:
                break
            token_id = chance.choice(allowed_ids(matcher, tokenizer.vocab_size))
            num_beginnings = sum(tokenizer.token_bytes(token_id).count(byte) for byte in (b"{", b"[", b",", b":", b'"'))
            matcher.take(token_id, 10**6)
            after = matcher.min_tokens()
            assert after is not None
            assert after - before <= bound * (1 + num_beginnings)
            before = after
            num_checked += 1
    assert num_checked > 150
