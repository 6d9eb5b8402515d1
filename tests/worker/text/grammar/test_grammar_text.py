from __future__ import annotations

import json
from typing import Any

import pytest

from tests.worker.text.grammar.compilers import BYTE_LEVEL, allowed_ids, compiler_of, tokenizer_of
from worker.text.grammar.grammar_text import WHITESPACE, framed, grammar_text, schemas_of, suffixes_of


def schema_of(text: str) -> Any:
    parts = schemas_of(text)
    assert parts is not None
    (schema,) = parts.schemas
    return schema


def test_the_schema_of_a_document_can_be_read_from_its_grammar() -> None:
    schema = schema_of(grammar_text("json_schema", {"type": "object", "properties": {"größe": {"type": "null"}}}))
    assert schema["properties"] == {"größe": {"type": "null"}}
    assert schema["x-guidance"]["whitespace_pattern"] == WHITESPACE
    assert schema_of(grammar_text("json_object", None))["type"] == "object"


def test_other_grammars_have_no_schema() -> None:
    for text in (grammar_text("regex", "a"), grammar_text("choice", ["a"]), grammar_text("grammar", 'start: "a"')):
        assert schemas_of(text) is None


def test_documents_in_a_frame_have_their_schemas_and_what_stands_around_them_a_length() -> None:
    frame = 'start: "é" (@a | @b)'
    parts = {name: grammar_text("json_schema", {"const": name}) for name in "ab"}
    found = schemas_of(framed(frame, parts))
    assert found is not None
    assert [schema["const"] for schema in found.schemas] == ["a", "b"]
    assert found.frame_bytes == len(frame.encode())
    assert schemas_of(framed(frame, {**parts, "b": grammar_text("regex", "b")})) is None
    matcher = compiler_of(BYTE_LEVEL).compile(framed(frame, parts))
    matcher.restore(tokenizer_of(BYTE_LEVEL).encode('é"b"', add_special=False), 100)
    assert matcher.is_complete


def test_white_space_is_what_the_caller_says() -> None:
    assert schema_of(grammar_text("json_object", None, " ?"))["x-guidance"]["whitespace_pattern"] == " ?"


def test_equal_schemas_have_equal_texts() -> None:
    texts = {grammar_text("json_schema", json.loads('{"type": "string"}')) for _ in range(2)}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("expression", "text"), [("a/b", "a/b"), (r"a\/b", "a/b"), ("a\nb", "a\nb"), (r"\\/", "\\/"), ('"+', '""')]
)
def test_expressions_mean_what_they_say_whatever_must_be_escaped_in_them(expression: str, text: str) -> None:
    ids = tokenizer_of(BYTE_LEVEL).encode(text, add_special=False)
    matcher = compiler_of(BYTE_LEVEL).compile(grammar_text("regex", expression))
    matcher.restore(ids, 100)
    assert matcher.is_complete or set(allowed_ids(matcher, tokenizer_of(BYTE_LEVEL).vocab_size)) & {
        *tokenizer_of(BYTE_LEVEL).end_ids
    }


def test_choices_may_hold_any_text() -> None:
    for text in ('with "quotes"', "🙂", "back\\slash", "two\nlines"):
        matcher = compiler_of(BYTE_LEVEL).compile(grammar_text("choice", ["other", text]))
        matcher.restore(tokenizer_of(BYTE_LEVEL).encode(text, add_special=False), 100)
        assert matcher.is_complete


@pytest.mark.parametrize(
    ("text", "suffixes"),
    [
        ('start: a b a\na[suffix="</a>"]: /x*/\nb[suffix="\\"é"]: /y*/\nc[suffix="</a>"]: a', [b"</a>", b'"\xc3\xa9']),
        ('start: "a"', []),
        ('a[suffix=""]: /x*/', []),
        (r'a[suffix="\x"]: /x*/', []),
        (r'a[suffix="\ud800"]: /x*/', []),
        (" ".join(f'a[suffix="{number}"]: b' for number in range(40)), [b"%d" % each for each in range(16)]),
    ],
)
def test_texts_that_end_others_are_told(text: str, suffixes: list[bytes]) -> None:
    assert suffixes_of(grammar_text("grammar", text)) == suffixes
    assert suffixes_of(framed("start: @a", {"a": grammar_text("grammar", text)})) == suffixes


def test_what_is_no_grammar_has_no_such_texts() -> None:
    assert suffixes_of("{") == suffixes_of("[" * 100_000) == []
