from __future__ import annotations

import json

from worker.text.grammar.grammar_text import WHITESPACE, grammar_text, json_schema_of


def test_the_schema_of_a_document_can_be_read_from_its_grammar() -> None:
    schema = json_schema_of(grammar_text("json_schema", {"type": "object", "properties": {"größe": {"type": "null"}}}))
    assert schema["properties"] == {"größe": {"type": "null"}}
    assert schema["x-guidance"]["whitespace_pattern"] == WHITESPACE
    assert json_schema_of(grammar_text("json_object", None))["type"] == "object"


def test_other_grammars_have_no_schema() -> None:
    for text in (grammar_text("regex", "a"), grammar_text("choice", ["a"]), grammar_text("grammar", 'start: "a"')):
        assert json_schema_of(text) is None


def test_white_space_is_what_the_caller_says() -> None:
    assert json_schema_of(grammar_text("json_object", None, " ?"))["x-guidance"]["whitespace_pattern"] == " ?"


def test_equal_schemas_have_equal_texts() -> None:
    texts = {grammar_text("json_schema", json.loads('{"type": "string"}')) for _ in range(2)}
    assert len(texts) == 1
