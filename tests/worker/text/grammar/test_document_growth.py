"""The bound of the growth holds for all tokens of real documents."""

from __future__ import annotations

import math
import random
from itertools import accumulate
from typing import Any

import pytest

from tests.worker.text.grammar.compilers import BYTE_LEVEL, allowed_ids, alphabet_of, compiler_of, tokenizer_of
from tests.worker.text.grammar.schemas import make_schemas
from worker.text.grammar.document_growth import UNTOLD, Growth, framed, growth
from worker.text.grammar.grammar_text import grammar_text

NAME = {"type": "string", "minLength": 3}
NODE = {"type": "object", "properties": {"kind": {"const": 1}, "next": {"type": "array", "minItems": 4}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "a{50}"},
        {"allOf": [NAME]},
        {"type": "object", "properties": {"a": {"contains": NAME}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"required": ["b"], "properties": {"b": {"$ref": "#/$defs/a"}}}}},
        {"$ref": "#/$defs/nowhere"},
        {"type": "string", "$defs": 5},
        {"type": "string", "$defs": {"a": {"minLength": "x"}}},
        {"type": "string", "$defs": {"b": {"enum": []}}},
        {"type": "number", "minimum": "x"},
        {"type": [["string"]]},
    ],
)
def test_what_a_schema_does_not_tell_has_no_bound(schema: Any) -> None:
    assert growth(schema) == UNTOLD
    assert growth(schema).of(b"") == math.inf


def test_the_bound_counts_what_a_value_must_have() -> None:
    small = growth({"type": "object", "properties": {"a": NAME}, "required": ["a"]})
    large = growth({"type": "object", "properties": {"a": {"type": "array", "items": NAME, "minItems": 9}}})
    assert small.of(b"{") == len('{"a":"abc",}')
    assert large.of(b"[") >= 2 + 9 * 6 - 1
    assert small.of(b"{,{") == 2 * small.of(b"{") + small.of(b",")
    assert large.unfinished > small.unfinished + 8 * 5, "a name may be chosen that has a long value"


def test_text_in_strings_numbers_and_spaces_add_nothing() -> None:
    assert growth({"type": "object", "properties": {"a": NAME, "b": {"type": "number"}}}).of(b"]}:") == 0


@pytest.mark.parametrize(
    "alternatives",
    [
        [NODE, {"type": "object"}],
        [NODE, {"anyOf": [{"type": "null"}, NODE]}],
        [NODE, {"$ref": "#/$defs/node"}],
        [{"enum": [{"a": 1}]}, {}],
        [{"type": "array"}, {"type": ["array", "string"]}],
    ],
)
def test_where_objects_or_arrays_are_told_apart_inside_any_token_may_bring_the_longest(alternatives: list[Any]) -> None:
    ambiguous = growth({"anyOf": alternatives, "$defs": {"node": NODE}})
    assert ambiguous.of(b"") == ambiguous.of(b"{") / 2 > 0


def test_alternatives_of_different_kinds_are_told_apart_by_how_they_begin() -> None:
    assert growth({"anyOf": [NODE, {"type": "array"}, {"type": "string"}, {"type": "null"}]}).of(b"") == 0


def test_around_documents_with_a_text_any_token_may_begin_the_next_one() -> None:
    one, other = growth(NAME), growth(NODE)
    both = framed([one, other], 10)
    assert (
        both.of(b"") == 10 + max(sum(each.of(bytes([byte])) for each in [other]) for byte in b'{[,"') + other.unfinished
    )
    assert framed([one, UNTOLD], 10).of(b"") == math.inf


@pytest.mark.parametrize("seed", [23, 24])
def test_no_tokens_lengthen_the_closing_by_more(seed: int) -> None:
    tokenizer, compiler = tokenizer_of(BYTE_LEVEL), compiler_of(BYTE_LEVEL)
    alphabet = alphabet_of(BYTE_LEVEL)
    num_checked = num_bounded = 0
    for number, schema in enumerate(make_schemas(seed, 12)):
        told: Growth = growth(schema)
        if told == UNTOLD:
            continue
        num_bounded += 1
        chance = random.Random(number)
        matcher = compiler.compile(grammar_text("json_schema", schema))
        lengths, grown = [matcher.min_tokens() or 0], [0.0]
        while len(grown) < 40 and not matcher.is_complete:
            token_id = chance.choice(allowed_ids(matcher, tokenizer.vocab_size))
            assert matcher.take(token_id, 10**6) == token_id
            grown.append(told.of(alphabet.structures[alphabet.kinds[token_id]]))
            lengths.append(matcher.min_tokens() or 0)
        sums = list(accumulate(grown))
        for later in range(len(sums)):
            for before in range(later):
                assert lengths[later] - lengths[before] <= sums[later] - sums[before] + told.unfinished
                num_checked += 1
    assert num_checked > 1000
    assert num_bounded >= 6
