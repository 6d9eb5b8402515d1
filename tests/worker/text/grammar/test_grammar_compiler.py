from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from orcd.errors import InvalidRequest, OrcdError
from orcd.structured_output import Kind
from tests.worker.text.grammar.compilers import BYTE_LEVEL, allowed_ids, compiler_of, tokenizer_of
from tests.worker.text.grammar.schemas import make_schemas
from tests.worker.text.vocabularies import bpe_metadata
from worker.text import tokenizer
from worker.text.grammar.grammar_compiler import FORMATS, GrammarCompiler, _Tokens
from worker.text.grammar.grammar_text import grammar_text
from worker.text.grammar.spelling import Spelling
from worker.text.tokenizer import Tokenizer

ENDLESS = {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}


def deep_schema() -> Any:
    schema: Any = {}
    for _ in range(900):
        schema = {"type": "array", "items": schema, "minItems": 1}
    return schema


def exponential_schema() -> Any:
    """Each level holds the next one twice."""
    levels = {f"a{level}": {"$ref": f"#/$defs/a{level + 1}"} for level in range(30)}
    parts = {
        name: {"type": "object", "properties": {"l": below, "r": below}, "required": ["l", "r"]}
        for name, below in levels.items()
    }
    return {"$defs": {**parts, "a30": {"type": "null"}}, "$ref": "#/$defs/a0"}


def test_end_tokens_that_cannot_be_drawn_end_no_document() -> None:
    tokens = tokenizer_of(BYTE_LEVEL)
    first, *others = sorted(tokens.end_ids)
    compiler = GrammarCompiler(tokens, others[-1]) if others else None
    assert compiler is None or compiler.compile(grammar_text("choice", ["a"]))
    with pytest.raises(InvalidRequest, match="no token that ends an answer"):
        GrammarCompiler(tokens, first)


@pytest.mark.parametrize(
    ("kind", "value", "complaint"),
    [
        ("json_schema", {"not": {"type": "string"}}, r"keywords that are not supported \(not\)"),
        ("json_schema", {"type": "array", "uniqueItems": True}, r"not supported \(uniqueItems\)"),
        ("json_schema", {"$dynamicAnchor": "secret"}, r"not supported \(\$dynamicAnchor\)"),
        ("json_schema", {"type": "integer", "minimum": 5, "maximum": 3}, "no document can fit"),
        ("json_schema", {"enum": []}, "no document can fit"),
        ("json_schema", {"type": "string", "format": "secret"}, "not supported; known are date, date-time, "),
        ("json_schema", {"type": "string", "maxLength": "secret"}, "a value of another type"),
        ("json_schema", {"oneOf": [{"minLength": 1}, {"maxLength": 9}]}, "write anyOf"),
        ("json_schema", {"type": "secret"}, "a type of the schema is unknown"),
        ("json_schema", {"$ref": "http://secret.example/x"}, "refers to another document"),
        ("json_schema", {"type": "string", "pattern": "(?<=secret)b"}, "regular expression"),
        ("json_schema", {"$ref": "#/$defs/a", "$defs": {"a": ENDLESS}}, "no document was found"),
        ("regex", "secret(", "regular expression"),
        ("grammar", "secret: [", "not well-formed"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_grammar_is_said_without_what_its_writer_wrote(
    kind: Kind, value: Any, complaint: str
) -> None:
    with pytest.raises(InvalidRequest, match=complaint) as refused:
        compiler_of(BYTE_LEVEL).compile(grammar_text(kind, value))
    assert "secret" not in refused.value.message


@pytest.mark.parametrize("name", FORMATS)
def test_formats_that_are_named_as_known_can_be_asked_for(name: str) -> None:
    schema = {"type": "string", "format": name}
    assert compiler_of(BYTE_LEVEL).compile(grammar_text("json_schema", schema))


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        (deep_schema(), "nested too deeply"),
        (exponential_schema(), "no document was found"),
        ({"type": "object", "properties": {f"p{number}": {} for number in range(2000)}}, "too complex"),
        ({"type": "string", "minLength": 100_000}, "no document was found"),
    ],
)
def test_schemas_that_grow_without_bounds_are_refused(schema: Any, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        compiler_of(BYTE_LEVEL).compile(grammar_text("json_schema", schema))


def test_an_expression_that_takes_long_is_refused_soon() -> None:
    start = time.process_time()
    with pytest.raises(InvalidRequest, match="too complex"):
        compiler_of(BYTE_LEVEL).compile(grammar_text("regex", "a{1000}{1700}"))
    assert time.process_time() - start < 0.5, "1.1 s with llguidance's own limit"


def test_an_expression_that_grows_without_bounds_ends_its_answer_only() -> None:
    matcher = compiler_of(BYTE_LEVEL).compile(grammar_text("regex", ".*" * 200))
    with pytest.raises(OrcdError, match="too complex"):
        for num_left in range(100, 0, -1):
            matcher.take(allowed_ids(matcher, tokenizer_of(BYTE_LEVEL).vocab_size, num_left)[0], num_left)


def test_ids_behind_the_vocabulary_never_come() -> None:
    """Models are padded."""
    tokenizer = tokenizer_of(BYTE_LEVEL)
    matcher = GrammarCompiler(tokenizer, tokenizer.vocab_size + 100).compile(grammar_text("regex", ".*"))
    allowed = allowed_ids(matcher, tokenizer.vocab_size + 100)
    assert len(allowed) > 100
    assert max(allowed) < tokenizer.vocab_size


def test_a_schema_does_not_change_how_it_is_read() -> None:
    schema = {"type": "object", "uniqueItems": True, "items": {"uniqueItems": True}, "x-guidance": {"lenient": True}}
    with pytest.raises(InvalidRequest, match="uniqueItems"):
        compiler_of(BYTE_LEVEL).compile(grammar_text("json_schema", {"type": "array", **schema}))


def test_a_vocabulary_that_joins_every_character_with_others_has_grammars_too() -> None:
    merges = [f"{first} {second}" for first in "ĂĀ" for second in '{"a']
    compiler = GrammarCompiler(tokenizer.from_metadata(bpe_metadata(*merges)))
    matcher = compiler.compile(grammar_text("json_schema", {"const": {"a": "aaa"}}))
    assert matcher.min_tokens() is not None
    assert matcher.forced_id(1000) == ord("{")


def test_a_text_that_must_follow_is_encoded_once_for_all_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    encode = Tokenizer.encode

    def counted(self: Tokenizer, text: str, **options: Any) -> list[int]:
        encoded.append(text)
        return encode(self, text, **options)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    for num_words in (60, 60, 300):
        schema = {"type": "object", "required": ["word" * num_words]}
        compiler_of(BYTE_LEVEL).compile(grammar_text("json_schema", schema))
    known = [text for text in encoded if len(text) < 1000]
    assert len(known) == len(set(known)) > 0
    assert len(encoded) > len(set(encoded)), "longer ones are not kept"


def test_what_is_known_of_tokens_that_are_texts_changes_no_mask() -> None:
    subject = tokenizer_of(BYTE_LEVEL)
    tokens = _Tokens(subject, subject.vocab_size, Spelling(subject))
    plain = LLTokenizer(TokenizerWrapper(tokens), eos_token=sorted(subject.end_ids), slices=[])
    num_compared = 0
    for number, schema in enumerate(make_schemas(29, 8)):
        grammar, chance = grammar_text("json_schema", schema), random.Random(number)
        matcher, other = LLMatcher(compiler_of(BYTE_LEVEL)._tokens, grammar), LLMatcher(plain, grammar)
        while not matcher.is_stopped() and num_compared < 60 * (number + 1):
            mask = matcher.compute_bitmask()
            assert mask == other.compute_bitmask()
            token_id = int(
                chance.choice(np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")))
            )
            assert matcher.consume_token(token_id) == other.consume_token(token_id)
            num_compared += 1
    assert num_compared > 100
