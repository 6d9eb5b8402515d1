"""The form of an answer: how requests say it, what is made of that, and that everything else is refused by name."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from orcd import request
from orcd.errors import InvalidRequest
from orcd.structured_output import MAX_BYTES, MAX_CHOICES, StructuredOutput

SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"enum": ["é", None]}}}


def schema_format(schema: Any = SCHEMA, **others: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **others}}


def read(**fields: Any) -> StructuredOutput | None:
    """What a worker makes of a request that came through Redis."""
    stored = request.encode(request.parse({"prompt": "x", **fields}))
    return request.structured_output(request.decode(stored))


def refusal(**fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        request.parse({"prompt": "x", **fields})
    return caught.value.message


@pytest.mark.parametrize(
    ("response_format", "output"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "text", "json_schema": None}, None),
        ({"type": "json_object"}, StructuredOutput("json_object")),
        (schema_format(), StructuredOutput("json_schema", SCHEMA)),
        (schema_format({}, description="d", strict=False), StructuredOutput("json_schema", {})),
        (schema_format(strict=True, description=None), StructuredOutput("json_schema", SCHEMA)),
    ],
)
def test_openais_way_of_saying_it(response_format: Any, output: StructuredOutput | None) -> None:
    assert read(response_format=response_format) == output


@pytest.mark.parametrize(
    ("outputs", "output"),
    [
        ({"json": SCHEMA}, StructuredOutput("json_schema", SCHEMA)),
        ({"json": json.dumps(SCHEMA)}, StructuredOutput("json_schema", SCHEMA)),
        ({"json": {}, "whitespace_pattern": "[ ]?"}, StructuredOutput("json_schema", {}, "[ ]?")),
        ({"json_object": True}, StructuredOutput("json_object")),
        ({"json_object": True, "whitespace_pattern": " "}, StructuredOutput("json_object", None, " ")),
        ({"regex": "[a-z]+", "json": None}, StructuredOutput("regex", "[a-z]+")),
        ({"choice": ["yes", "no"]}, StructuredOutput("choice", ["yes", "no"])),
        ({"grammar": 'start: "a"'}, StructuredOutput("grammar", 'start: "a"')),
    ],
)
def test_vllms_way_of_saying_it(outputs: Any, output: StructuredOutput) -> None:
    assert read(structured_outputs=outputs) == output


def test_the_order_of_a_schemas_properties_is_kept() -> None:
    output = read(response_format=schema_format())
    assert output is not None
    assert isinstance(output.value, dict)
    assert list(output.value["properties"]) == ["b", "a"]


@pytest.mark.parametrize("outputs", [{"json": json.dumps(SCHEMA, indent=4)}, {"json": SCHEMA}, {"choice": ["a"]}])
def test_the_request_as_stored_has_the_callers_own_field(outputs: dict[str, Any]) -> None:
    stored = request.encode(request.parse({"prompt": "x", "structured_outputs": outputs}))
    assert json.loads(stored) == {"prompt": "x", "structured_outputs": outputs}


def test_text_in_one_way_leaves_the_other() -> None:
    fields = {"response_format": {"type": "text"}, "structured_outputs": {"regex": "a"}}
    assert read(**fields) == StructuredOutput("regex", "a")


@pytest.mark.parametrize(
    ("response_format", "said"),
    [
        (5, "response_format: expected `object | null`, got `int`"),
        ({}, "response_format: object missing required field `type`"),
        ({"type": None}, "response_format.type: expected `str`"),
        ({"type": "xml"}, "response_format.type: must be text, json_object or json_schema"),
        ({"type": "json_schema"}, "response_format.json_schema: goes with the type json_schema"),
        ({**schema_format(), "type": "text"}, "response_format.json_schema: goes with the type json_schema"),
        ({"type": "text", "schema": {}}, "response_format.schema: unknown field"),
        (
            {"type": "json_schema", "json_schema": {"schema": {}}},
            "response_format.json_schema: object missing required",
        ),
        (schema_format("{}"), "response_format.json_schema.schema: expected `object`, got `str`"),
        (schema_format(strict=1), "response_format.json_schema.strict: expected `bool | null`"),
        (schema_format(shema=1), "response_format.json_schema.shema: unknown field"),
        (schema_format({"const": b"x"}), "response_format.json_schema.schema: must be plain JSON"),
        (schema_format({"const": math.nan}), "response_format.json_schema.schema: must be plain JSON"),
        (schema_format({"const": object()}), "response_format.json_schema.schema: must be plain JSON"),
        (schema_format({"const": "\ud800"}), "response_format.json_schema.schema: must be plain JSON"),
        (
            schema_format({"const": "x" * MAX_BYTES}),
            "response_format.json_schema.schema: has 65548 bytes; at most 65536",
        ),
    ],
)
def test_a_response_format_that_cannot_be_had_is_refused_by_name(response_format: Any, said: str) -> None:
    assert refusal(response_format=response_format).startswith(said)


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ([], "structured_outputs: expected `object | null`"),
        ({}, "structured_outputs: give exactly one of json, regex, choice, grammar, json_object"),
        ({"regex": "a", "choice": ["a"]}, "structured_outputs: give exactly one of json"),
        ({"whitespace_pattern": "a"}, "structured_outputs: give exactly one of json"),
        ({"json": ["a"]}, "structured_outputs.json: expected `str | object | null`"),
        ({"json": "[]"}, "structured_outputs.json: must be a JSON schema, as an object or as its text"),
        ({"json": "{"}, "structured_outputs.json: must be a JSON schema, as an object or as its text"),
        ({"json": "[" * MAX_BYTES}, "structured_outputs.json: must be a JSON schema, as an object or as its text"),
        ({"json": "\ud800"}, "structured_outputs.json: must be a JSON schema, as an object or as its text"),
        ({"json": "{" + " " * MAX_BYTES + "}"}, "structured_outputs.json: has 65538 bytes; at most 65536 are allowed"),
        ({"json": {"a": "é" * MAX_BYTES}}, "structured_outputs.json: has 131080 bytes; at most 65536 are allowed"),
        ({"json_object": False}, "structured_outputs.json_object: must be true"),
        ({"json_object": 1}, "structured_outputs.json_object: expected `bool | null`"),
        ({"regex": ""}, "structured_outputs.regex: expected `str` of length >= 1"),
        ({"regex": "é" * (MAX_BYTES // 2 + 1)}, "structured_outputs.regex: has 65538 bytes; at most 65536 are allowed"),
        ({"grammar": "x" * (MAX_BYTES + 1)}, "structured_outputs.grammar: has 65537 bytes; at most 65536 are allowed"),
        ({"choice": []}, "structured_outputs.choice: expected `array` of length >= 1"),
        ({"choice": ["a", ""]}, "structured_outputs.choice[1]: expected `str` of length >= 1"),
        ({"choice": ["a"] * (MAX_CHOICES + 1)}, "structured_outputs.choice: expected `array` of length <= 1000"),
        ({"choice": ["x" * 100] * MAX_CHOICES}, "structured_outputs.choice: has 103001 bytes; at most 65536"),
        (
            {"regex": "a", "whitespace_pattern": " "},
            "structured_outputs.whitespace_pattern: goes with json or json_obj",
        ),
        ({"structural_tag": "x"}, "structured_outputs.structural_tag: unknown field"),
    ],
)
def test_structured_outputs_that_cannot_be_had_are_refused_by_name(outputs: Any, said: str) -> None:
    assert refusal(structured_outputs=outputs).startswith(said)


def test_what_is_just_short_enough_is_taken() -> None:
    assert read(structured_outputs={"regex": "x" * MAX_BYTES}) == StructuredOutput("regex", "x" * MAX_BYTES)
    assert read(structured_outputs={"choice": ["x"] * MAX_CHOICES}) is not None


def test_a_schema_nested_for_ever_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["not"] = loop
    assert refusal(response_format=schema_format(loop)) == (
        "response_format.json_schema.schema: must be plain JSON, less deeply nested"
    )


def test_the_two_ways_exclude_each_other() -> None:
    said = "structured_outputs: response_format says what form the answer has; give one of the two"
    assert refusal(response_format={"type": "json_object"}, structured_outputs={"json_object": True}) == said


def test_an_answer_cannot_be_longer_than_its_document() -> None:
    said = "min_tokens: must be 0 with structured output, as a document may end earlier"
    assert refusal(min_tokens=1, response_format={"type": "json_object"}) == said
    assert refusal(min_tokens=1, structured_outputs={"regex": "a"}) == said
    assert read(min_tokens=1, response_format={"type": "text"}) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "CANARY"}},
        {"response_format": schema_format({"CANARY": b"CANARY"})},
        {"response_format": schema_format({1: "CANARY"}, name=["CANARY"])},
        {"structured_outputs": {"json": "CANARY"}},
        {"structured_outputs": {"regex": "CANARY", "grammar": "CANARY"}},
        {"structured_outputs": {"choice": ["CANARY"] * 1001}},
    ],
)
def test_no_refusal_quotes_what_the_caller_wrote(fields: dict[str, Any]) -> None:
    assert "CANARY" not in refusal(**fields)
