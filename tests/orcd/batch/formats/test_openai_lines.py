from __future__ import annotations

import json
from typing import Any

import pytest

from orcd.batch.formats.defaults import Defaults
from orcd.batch.formats.line_format import ParsedRecord, Record
from orcd.batch.formats.openai_lines import OpenaiLines
from orcd.errors import InvalidRequest

LINE: dict[str, Any] = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"messages": [{"role": "user", "content": "rain"}], "max_completion_tokens": 5, "seed": None},
}


def parse(changes: dict[str, Any], defaults: Defaults | None = None) -> ParsedRecord:
    line = {name: value for name, value in (LINE | changes).items() if value is not ...}
    return OpenaiLines(defaults or Defaults()).parse(Record(1, json.dumps(line).encode()))


def test_a_line_is_the_request_in_its_body() -> None:
    parsed = parse({})
    assert (parsed.id, parsed.url, parsed.body) == ("a", LINE["url"], LINE["body"])
    assert parsed.request.messages == LINE["body"]["messages"]
    assert parsed.request.max_tokens == 5


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/completions", {"prompt": "rain"}),
        ("/v1/responses", {"input": "rain"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "rain"}]}),
    ],
)
def test_all_endpoints_have_the_fields_of_the_command_line(url: str, body: dict[str, Any]) -> None:
    request = parse({"url": url, "body": body}, Defaults({"max_tokens": 3, "temperature": 0.0})).request
    assert (request.max_tokens, request.temperature) == (3, 0.0)


def test_a_field_of_the_body_wins_under_any_of_its_names() -> None:
    assert parse({}, Defaults({"max_tokens": 3, "seed": 7})).request.max_tokens == 5
    assert parse({}, Defaults({"max_tokens": 3, "seed": 7})).request.seed == 7


def test_a_system_message_of_the_command_line_is_in_the_body() -> None:
    request = parse({}, Defaults(system="Be brief.")).request
    assert [message["role"] for message in request.messages or ()] == ["system", "user"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"custom_id": ...}, "custom_id: must be a text"),
        ({"custom_id": 5}, "custom_id: must be a text"),
        ({"custom_id": ""}, "custom_id: must be a text"),
        ({"method": "GET"}, "method: must be POST"),
        ({"method": ...}, "method: must be POST"),
        ({"url": ...}, "url: must be a text"),
        ({"url": "/v1/embeddings"}, "url: must be one of"),
        ({"body": ...}, "body: must be an object"),
        ({"body": "text"}, "body: must be an object"),
        ({"bodi": {}}, "bodi: unknown field; a line has custom_id, method, url, body"),
        ({"body": {"messages": LINE["body"]["messages"], "temprature": 1}}, "temprature: unknown field"),
        ({"body": {"messages": [{"role": "user", "content": "\ud800"}]}}, "not valid JSON in UTF-8"),
    ],
)
def test_a_line_that_is_wrong_names_the_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parse(changes)


def test_a_line_keeps_its_custom_id_when_it_is_wrong() -> None:
    assert OpenaiLines(Defaults()).caller_id(Record(1, b'{"custom_id": "a", "body": ')) == "a"
