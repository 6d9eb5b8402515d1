from __future__ import annotations

from typing import Any

import pytest

from orcd.gateway.body_schema import body_schema
from orcd.openai.body_fields import Unsupported
from orcd.openai.body_table import CHAT, COMPLETIONS, RESPONSES
from orcd.openai.endpoints import parse_body

ENDPOINTS = [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETIONS), ("/v1/responses", RESPONSES)]
REQUIRED: dict[str, Any] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/completions": {"prompt": "x"},
    "/v1/responses": {"input": "x"},
}


def properties_of(table: Any) -> dict[str, Any]:
    found: dict[str, Any] = body_schema(table, [])["properties"]
    return found


@pytest.mark.parametrize(("_url", "table"), ENDPOINTS)
def test_a_schema_has_each_field_that_is_not_always_refused(_url: str, table: Any) -> None:
    refused = {name for name, treatment in table.items() if isinstance(treatment, Unsupported) and not treatment.off}
    assert properties_of(table).keys() == table.keys() - refused


@pytest.mark.parametrize(("url", "table"), ENDPOINTS)
def test_values_that_a_schema_lists_and_null_are_accepted(url: str, table: Any) -> None:
    for name, schema in properties_of(table).items():
        if name in REQUIRED[url]:
            continue
        for value in (None, *schema.get("anyOf", [{}])[0].get("enum", [])):
            assert parse_body(url, {**REQUIRED[url], name: value}), (name, value)


def test_limits_are_those_of_requests() -> None:
    schema = body_schema(CHAT, ["messages"])
    temperature, null = schema["properties"]["temperature"]["anyOf"]
    assert (temperature["minimum"], temperature["maximum"], null) == (0, 2, {"type": "null"})
    assert schema["properties"]["messages"]["type"] == "array"
    assert schema["required"] == ["messages"]
    assert not schema["additionalProperties"]
