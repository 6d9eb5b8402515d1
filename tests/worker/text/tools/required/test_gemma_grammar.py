"""Arguments in Gemma's form fit their schema, whatever is drawn by their grammar, and those that fit can be written."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from orcd.errors import InvalidRequest
from tests.worker.text.grammar.compilers import BYTE_LEVEL, allowed_ids, compiler_of, tokenizer_of
from tests.worker.text.tools.noting_sink import NotingSink
from tests.worker.text.vocabularies import bpe_metadata
from worker.text import tokenizer
from worker.text.grammar.grammar_compiler import GrammarCompiler
from worker.text.tokenizer import Tokenizer
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.call_syntax import GEMMA4
from worker.text.tools.required.call_grammar import call_grammar
from worker.text.tools.tagged_call import GemmaCall

NAME = {"type": "string", "maxLength": 5}
SCHEMA = {
    "type": "object",
    "properties": {
        "Zone": {"anyOf": [{"type": "integer", "minimum": 3, "maximum": 5}, {"type": "null"}]},
        "city": NAME,
        "a key": {"enum": ["a b", 7, [True, None], {"x": "y"}]},
        "rows": {"type": "array", "items": {"$ref": "#/$defs/row"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["city", "rows"],
    "$defs": {
        "row": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}, "below": {"type": "array", "items": {"$ref": "#/$defs/row"}}},
        }
    },
}
CONTROL = tokenizer.from_metadata(bpe_metadata("a b", control=("<turn|>", *GEMMA4.markers)))


def grammar_of(schema: Any, vocabulary: Tokenizer) -> str:
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    return call_grammar(AnswerForm(GEMMA4), tools, vocabulary, thinks=False)


def arguments_of(text: str) -> Any:
    """What is read of one call."""
    call = text.removeprefix("<|tool_call>")
    sink: Any = NotingSink()
    reader = GemmaCall(sink).calls()
    next(reader)
    with pytest.raises(StopIteration):
        for char in call:
            reader.send(char)
    return json.loads(sink.told[1])


@pytest.mark.parametrize("vocabulary", [tokenizer_of(BYTE_LEVEL), CONTROL], ids=["spelt", "control tokens"])
def test_what_is_drawn_fits_the_schema(vocabulary: Tokenizer) -> None:
    compiler = GrammarCompiler(vocabulary)
    beginning = compiler.compile(grammar_of(SCHEMA, vocabulary))
    seen = set()
    for seed in range(30):
        matcher, chance, ids = beginning.copy(), random.Random(seed), list[int]()
        while len(ids) < 300 and not matcher.is_complete:
            allowed = allowed_ids(matcher, vocabulary.vocab_size)
            ends = vocabulary.end_ids.intersection(allowed)
            ids.append(matcher.take(min(ends) if ends else chance.choice(allowed), 10**6))
        if matcher.is_complete:
            text = vocabulary.decode(ids[:-1])
            arguments = arguments_of(text.partition("<tool_call|>")[0])
            jsonschema.validate(arguments, SCHEMA)
            seen |= arguments.keys()
    assert seen == set(SCHEMA["properties"])


def can_be_written(schema: Any, arguments: str) -> bool:
    vocabulary = tokenizer_of(BYTE_LEVEL)
    matcher = compiler_of(BYTE_LEVEL).compile(grammar_of(schema, vocabulary))
    for token_id in vocabulary.encode(f"<|tool_call>call:f{arguments}<tool_call|>", add_special=False):
        if token_id not in allowed_ids(matcher, vocabulary.vocab_size):
            return False
        matcher.take(token_id, 10**6)
    return bool(vocabulary.end_ids.intersection(allowed_ids(matcher, vocabulary.vocab_size)))


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        (SCHEMA, '{city:<|"|>a"b<|"|>,rows:[{}]}'),
        (SCHEMA, '{<|"|>a key<|"|>:[true,null],city:<|"|><|"|>,rows:[{below:[{on:false}],on:true},{}],Zone:4}'),
        (SCHEMA, '{<|"|>a key<|"|>:{x:<|"|>y<|"|>},city:<|"|><|"|>,rows:[{}],Zone:null}'),
        ({"type": "object"}, "{}"),
        ({"type": "object"}, '{a:[1,<|"|>x<|"|>,[],{b:{c:true}}],d:null}'),
        ({"properties": {"a": NAME, "b": NAME}}, "{}"),
        ({"properties": {"a": NAME, "b": NAME}}, '{b:<|"|>x<|"|>}'),
        ({"properties": {"a": {}}, "required": ["a", "b"]}, "{a:-1.5,b:[[]]}"),
        ({"properties": {"a": {"type": ["string", "integer"]}}}, "{a:12}"),
        ({"properties": {"a": {"type": "array", "minItems": 2}}}, "{a:[1,2,3]}"),
        ({"properties": {"a": {"type": "array", "maxItems": 0}}}, "{a:[]}"),
        ({"additionalProperties": False}, "{}"),
    ],
)
def test_what_fits_can_be_written(schema: Any, arguments: str) -> None:
    assert can_be_written(schema, arguments)
    jsonschema.validate(arguments_of(f"call:f{arguments}"), schema)


@pytest.mark.parametrize(
    "arguments",
    [
        '{rows:[{}],city:<|"|><|"|>}',
        '{city:<|"|><|"|>}',
        "{rows:[{}]}",
        '{city:<|"|>abcdef<|"|>,rows:[{}]}',
        '{city:<|"|><|"|>,rows:[]}',
        '{city:<|"|><|"|>,rows:[{},{},{}]}',
        '{city:<|"|><|"|>,rows:[{}],Zone:6}',
        '{city:<|"|><|"|>,rows:[{}],other:1}',
    ],
)
def test_what_does_not_fit_cannot_be_written(arguments: str) -> None:
    assert not can_be_written(SCHEMA, arguments)


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ({"properties": {"a": {"type": "string", "pattern": "x"}}}, "pattern"),
        ({"properties": {"a": {"items": {"uniqueItems": True}}}}, "uniqueItems"),
        ({"minProperties": 1}, "minProperties"),
        ({"properties": {"a": {"$ref": "other.json"}}}, r"\$ref"),
        ({"properties": {"a": {"const": 'x<|"|>'}}}, "the text"),
    ],
)
def test_what_cannot_be_kept_to_is_named(schema: Any, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^tools\[0\].function.parameters: {complaint}.* is not supported"):
        grammar_of(schema, CONTROL)


def test_words_that_are_no_keywords_are_passed_over() -> None:
    assert can_be_written({"properties": {"a": {"type": "integer", "x-secret": 1, "description": "d"}}}, "{a:1}")
