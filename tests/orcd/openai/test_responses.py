"""Responses: what a body asks for, and the object that answers it."""

from __future__ import annotations

from typing import Any

import pytest

from orcd.errors import InvalidRequest
from orcd.openai import responses
from orcd.request import structured_output
from orcd.result import Choice, Result, ToolCall
from orcd.structured_output import StructuredOutput
from tests.orcd.openai.results import LOGPROBS, result

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}

FORMAT = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": False}


def parse(**body: Any) -> Any:
    return responses.parse({"input": "hi", **body}, {})


def refusal(**body: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(**body)
    return caught.value.message


def test_text_is_a_users_message_after_the_instructions() -> None:
    assert parse(instructions="be brief").messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    ]


def test_fields_have_the_endpoints_own_names() -> None:
    request = parse(
        max_output_tokens=9,
        reasoning={"effort": "low", "summary": None},
        text={"format": {"type": "text"}, "verbosity": "medium"},
        include=["message.output_text.logprobs"],
        top_logprobs=2,
    )
    assert (request.max_tokens, request.logprobs) == (9, 2)
    assert request.chat_template_kwargs == {"reasoning_effort": "low"}
    assert parse(include=["message.output_text.logprobs"]).logprobs == 0


def test_the_form_of_the_answer_is_the_format_of_its_text() -> None:
    request = parse(text={"format": {**FORMAT, "description": None}})
    assert structured_output(request) == StructuredOutput("json_schema", {"type": "object"})
    assert structured_output(parse(text={"format": {"type": "json_object"}})) == StructuredOutput("json_object")
    assert structured_output(parse(text={"format": {"type": "text"}})) is None


def test_functions_are_nested_as_templates_know_them() -> None:
    nested = {"type": "function", "function": {key: value for key, value in TOOL.items() if key != "type"}}
    assert parse(tools=[TOOL]).tools == [nested]
    assert parse(tools=[TOOL], tool_choice="none").tools is None


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_only_allowed_tools_are_offered(mode: str) -> None:
    other = {**TOOL, "name": "other"}
    choice = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": TOOL["name"]}]}
    request = parse(tools=[other, TOOL], tool_choice=choice)
    assert request == parse(tools=[TOOL], tool_choice=mode)
    assert responses.response({"tool_choice": choice}, result(Choice("x")), 0)["tool_choice"] == choice


@pytest.mark.parametrize(
    "body",
    [
        {"reasoning": {"summary": "auto"}},
        {"reasoning": {"generate_summary": "auto", "mode": "standard", "context": "auto"}},
        {"include": ["reasoning.encrypted_content", "web_search_call.action.sources"]},
        {"max_tool_calls": 3},
    ],
)
def test_what_asks_for_nothing_that_an_answer_has_here_is_no_fault(body: dict[str, Any]) -> None:
    assert parse(**body) == parse()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"max_output_tokens": 0}, "max_output_tokens: "),
        ({"text": "x"}, "text: must be an object"),
        ({"text": {"format": "x"}}, "text.format: must be an object"),
        ({"text": {"format": {}}}, "text.format.type: expected `str`"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type: must be text, json_object or json_schema"),
        (
            {"text": {"format": {"type": "json_schema", "schema": {}}}},
            "text.format: object missing required field `name`",
        ),
        ({"text": {"format": {**FORMAT, "schema": 5}}}, "text.format.schema: expected `object`"),
        ({"text": {"format": {**FORMAT, "type": "text"}}}, "text.format: goes with the type json_schema"),
        ({"text": {"formatt": FORMAT}}, "text.formatt: unknown field"),
        ({"response_format": {"type": "text"}}, "response_format is not supported: chats have it"),
        ({"text": {"verbosity": "low"}}, "text.verbosity is not supported"),
        ({"reasoning": 5}, "reasoning: must be an object"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary is not supported"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode is not supported"),
        ({"include": "x"}, "include: must be a list"),
        ({"include": ["everything"]}, "include: must be of message.output_text.logprobs, "),
        ({"include": [{}]}, "include: must be of message.output_text.logprobs, "),
        ({"top_logprobs": 2}, "top_logprobs: needs message.output_text.logprobs"),
        ({"top_logprobs": ""}, "top_logprobs: needs message.output_text.logprobs"),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": False}, "top_logprobs: expected `int"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]: only tools of the type function"),
        ({"tools": 5}, "tools: must be a list"),
        ({"truncation": "auto"}, "truncation is not supported"),
        ({"previous_response_id": "resp_1"}, "previous_response_id is not supported"),
        ({"n": 2}, "n is not supported"),
    ],
)
def test_what_cannot_be_had_is_named(body: dict[str, Any], said: str) -> None:
    assert refusal(**body).startswith(said)


def test_a_conversation_is_what_was_asked_and_answered_without_the_instructions() -> None:
    body = {"instructions": "be brief", "input": "hi"}
    calls = (ToolCall("call_1", "weather", "{}"),)
    answer = Choice("let me see", [1, 2, 3], "stop", reasoning="hm", tool_calls=calls)
    assert responses.conversation(body, parse(**body), result(answer)) == [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "let me see"}],
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
            ],
        },
    ]


def test_a_response_goes_on_from_a_conversation() -> None:
    before = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    body = {"instructions": "be long", "input": "who?", "previous_response_id": "resp_1"}
    assert responses.parse(body, {}, before).messages == [
        {"role": "system", "content": "be long"},
        *before,
        {"role": "user", "content": "who?"},
    ]


def test_an_answer_is_a_response_that_repeats_what_was_asked() -> None:
    body = {"input": "hi", "temperature": 0.5, "metadata": {"a": "b"}, "instructions": None}
    answer = responses.response(body, result(Choice("Rain", [1, 2, 3], "stop")), 5)
    assert (answer["id"], answer["object"], answer["created_at"]) == ("resp_job1", "response", 5)
    assert (answer["status"], answer["incomplete_details"], answer["error"]) == ("completed", None, None)
    assert (answer["temperature"], answer["metadata"], answer["top_p"]) == (0.5, {"a": "b"}, 1.0)
    text = {"type": "output_text", "text": "Rain", "annotations": [], "logprobs": []}
    assert answer["output"] == [
        {"id": "msg_job1", "type": "message", "role": "assistant", "status": "completed", "content": [text]}
    ]
    assert (answer["usage"]["input_tokens"], answer["usage"]["output_tokens"], answer["usage"]["total_tokens"]) == (
        9,
        3,
        12,
    )


def test_a_whole_answer_says_when_it_ended_and_any_other_null() -> None:
    ended = result(Choice("Rain", finish_reason="stop"), queue_ms=600, ttft_ms=500, decode_ms=1_000)
    assert responses.response({}, ended, 5)["completed_at"] == 7
    for other in (result(Choice("Ra", finish_reason="length"), decode_ms=9_000), Result("job1", "running")):
        assert responses.response({}, other, 5)["completed_at"] is None


def test_what_is_repeated_has_every_field_that_the_api_gives_it() -> None:
    def repeated(**body: Any) -> dict[str, Any]:
        return responses.response(body, result(Choice("Rain", finish_reason="stop")), 0)

    bare = {"type": "function", "name": "time"}
    flat = {"description": None, "parameters": None, "strict": None}
    nested = {"type": "function", "function": {"name": "time", "description": "now"}}
    assert repeated(tools=[TOOL, bare])["tools"] == [{**flat, **TOOL}, {**flat, **bare}]
    assert repeated(tools=[nested])["tools"] == [{**flat, **bare, "description": "now"}]
    nested_choice = {"type": "function", "function": {"name": "time"}}
    assert repeated(tool_choice=nested_choice)["tool_choice"] == bare
    assert repeated(reasoning={"effort": "low"})["reasoning"] == {"effort": "low", "summary": None}
    assert repeated(text={"verbosity": "medium", "format": None})["text"] == {
        "verbosity": "medium",
        "format": {"type": "text"},
    }
    named = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    for given in (named, {**named, "strict": None}):
        assert repeated(text={"format": given})["text"]["format"] == {**named, "description": None, "strict": False}


def test_an_answer_that_ran_out_of_tokens_is_incomplete() -> None:
    answer = responses.response({}, result(Choice("Ra", finish_reason="length")), 0)
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


def test_calls_of_tools_are_items_and_an_answer_of_nothing_else_has_no_message() -> None:
    calls = [ToolCall("a1", "weather", '{"city": "Rom"}'), ToolCall("b2", "time", "{}")]
    answer = responses.response({}, result(Choice("", finish_reason="stop", tool_calls=calls)), 0)
    assert answer["status"] == "completed"
    call = {"type": "function_call", "status": "completed", "call_id": "a1", "name": "weather"}
    assert answer["output"][0] == {"id": "fc_job1_0", "arguments": '{"city": "Rom"}', **call}
    assert [item["id"] for item in answer["output"]] == ["fc_job1_0", "fc_job1_1"]
    with_text = responses.response({}, result(Choice("So", tool_calls=calls)), 0)
    assert [item["type"] for item in with_text["output"]] == ["message", "function_call", "function_call"]


def test_reasoning_is_an_item_of_its_own_and_log_probabilities_are_with_the_text() -> None:
    answer = responses.response({}, result(Choice("Theé", reasoning="hm", logprobs=LOGPROBS)), 0)
    reasoning, message = answer["output"]
    assert (reasoning["type"], reasoning["content"]) == ("reasoning", [{"type": "reasoning_text", "text": "hm"}])
    assert len(message["content"][0]["logprobs"]) == 3
