"""Chat completions: what a body asks for, and the object that answers it."""

from __future__ import annotations

from typing import Any

import pytest

from orcd.errors import InvalidRequest
from orcd.openai import chat
from orcd.request import NamedTool, structured_output
from orcd.result import Choice, ToolCall
from orcd.structured_output import StructuredOutput
from tests.orcd.openai.results import LOGPROBS, result

MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def parse(**body: Any) -> Any:
    return chat.parse({"messages": MESSAGES, **body}, {})


def refusal(**body: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(**body)
    return caught.value.message


def test_messages_are_taken_as_they_are() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "Ada"}]
    assert parse(messages=parts).messages == parts


def test_a_body_without_messages_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"^messages: must be given$"):
        chat.parse({"model": "m"}, {})


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict"])
def test_the_length_has_several_names(name: str) -> None:
    assert parse(**{name: 7}).max_tokens == 7
    assert parse(**{name: None}).max_tokens is None
    assert refusal(**{name: 0}).startswith(f"{name}: ")


def test_two_names_of_one_field_must_agree() -> None:
    assert parse(max_tokens=7, max_completion_tokens=7).max_tokens == 7
    assert "max_tokens says another value" in refusal(max_tokens=7, max_completion_tokens=8)


@pytest.mark.parametrize(
    ("body", "logprobs"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 3}, 3),
    ],
)
def test_log_probabilities_are_asked_for_with_two_fields(body: dict[str, Any], logprobs: int | None) -> None:
    assert parse(**body).logprobs == logprobs


def test_fields_of_log_probabilities_that_do_not_go_together_are_refused() -> None:
    assert refusal(logprobs=3).startswith("logprobs: must be true or false")
    assert refusal(top_logprobs=3) == refusal(top_logprobs=False) == "top_logprobs: needs logprobs true"
    assert refusal(logprobs=True, top_logprobs=21).startswith("top_logprobs: ")


def test_tools_go_to_the_template_unless_none_may_be_called() -> None:
    assert parse(tools=[TOOL]).tools == [TOOL]
    assert parse(tools=[TOOL], tool_choice="auto", parallel_tool_calls=True).tools == [TOOL]
    assert parse(tools=[TOOL], tool_choice="none").tools is None
    assert parse(tools=[]).tools is None


def test_one_call_may_be_asked_for_also_where_there_are_no_tools() -> None:
    assert not parse(tools=[TOOL], parallel_tool_calls=False).parallel_tool_calls
    for nothing in ({}, {"tools": []}, {"tools": [TOOL], "tool_choice": "none"}):
        request = parse(**nothing, parallel_tool_calls=False)
        assert request.parallel_tool_calls, "nothing to say to a worker, which may be of a version that does not know"


def test_tools_may_be_asked_for_and_one_by_its_name() -> None:
    name = TOOL["function"]["name"]
    assert parse(tools=[TOOL]).tool_choice == "auto"
    assert parse(tools=[TOOL], tool_choice="required").tool_choice == "required"
    named = {"type": "function", "function": {"name": name}}
    assert parse(tools=[TOOL], tool_choice=named).tool_choice == NamedTool(name)


def allowed(mode: Any, *tools: Any) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [*tools]}}


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_only_allowed_tools_are_offered(mode: str) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    request = parse(tools=[TOOL, other], tool_choice=allowed(mode, other))
    assert (request.tools, request.tool_choice) == ([other], mode)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"tools": {}}, "tools: must be a list"),
        ({"tools": [TOOL, {"type": "custom"}]}, "tools[1]: only tools of the type function"),
        ({"tools": [{"type": "function"}]}, "tools[0].function: must be an object with a name"),
        ({"tool_choice": "required"}, "tool_choice: needs messages and tools"),
        ({"tool_choice": "any"}, "tool_choice is not supported"),
        ({"tool_choice": {"type": "custom", "name": "weather"}}, "tool_choice is not supported"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice: names a"),
        ({"tools": [TOOL], "tool_choice": allowed("none", TOOL)}, "tool_choice: allowed_tools need the mode"),
        ({"tools": [TOOL], "tool_choice": allowed([], TOOL)}, "tool_choice: allowed_tools need the mode"),
        ({"tools": [TOOL], "tool_choice": allowed("auto")}, "tool_choice: allowed_tools need the mode"),
        ({"tools": [TOOL], "tool_choice": allowed("auto", TOOL, {"type": "mcp"})}, "tool_choice: allowed_tools need"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": 5}}, "tool_choice: allowed_tools"),
        ({"tool_choice": allowed("auto", TOOL)}, "tool_choice: allows a tool that is not in tools"),
        ({"parallel_tool_calls": 0}, "parallel_tool_calls: must be true or false"),
        ({"tools": [TOOL], "parallel_tool_calls": False, "min_tokens": 1}, "min_tokens: must be 0 without parallel"),
    ],
)
def test_tools_that_cannot_be_had_are_named(body: dict[str, Any], said: str) -> None:
    assert refusal(**body).startswith(said)


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, StructuredOutput("json_object")),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": False}}},
            StructuredOutput("json_schema", {}),
        ),
        ({"structured_outputs": {"regex": "a"}}, StructuredOutput("regex", "a")),
        (
            {"structured_outputs": {"regex": "a", "disable_any_whitespace": False, "structural_tag": None}},
            StructuredOutput("regex", "a"),
        ),
        ({"guided_json": {}, "guided_decoding_backend": "xgrammar"}, StructuredOutput("json_schema", {})),
        ({"guided_json": "{}", "guided_whitespace_pattern": " "}, StructuredOutput("json_schema", {}, " ")),
        ({"guided_regex": "a"}, StructuredOutput("regex", "a")),
        ({"guided_choice": ["a", "b"]}, StructuredOutput("choice", ["a", "b"])),
        ({"guided_grammar": "start: /a/"}, StructuredOutput("grammar", "start: /a/")),
        ({"json_schema": {}, "grammar": ""}, StructuredOutput("json_schema", {})),
    ],
)
def test_the_form_of_the_answer_may_be_said_in_many_ways(body: dict[str, Any], output: StructuredOutput | None) -> None:
    assert structured_output(parse(**body)) == output


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema: goes with the type json_schema"),
        ({"structured_outputs": 5}, "structured_outputs: expected `object | null`"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs: structural_tag is not supported"),
        ({"guided_json": 5}, "guided_json: expected `str | object | null`"),
        ({"guided_json": "x"}, "guided_json: must be a JSON schema"),
        ({"guided_choice": []}, "guided_choice: expected `array` of length >= 1"),
        ({"guided_regex": "a", "structured_outputs": {"regex": "b"}}, "guided_regex: structured_outputs says another"),
        ({"guided_regex": "a", "structured_outputs": {"json": "{}"}}, "structured_outputs: give exactly one of json"),
        (
            {"guided_regex": "a", "response_format": {"type": "json_object"}},
            "guided_regex: response_format says what form",
        ),
        ({"grammar": 'root ::= "a"'}, "grammar is not supported: this is GBNF; write it in Lark's notation"),
        ({"min_tokens": 1, "guided_regex": "a"}, "min_tokens: must be 0 with structured output"),
    ],
)
def test_a_form_that_cannot_be_had_is_named(body: dict[str, Any], said: str) -> None:
    assert refusal(**body).startswith(said)


def test_reasoning_effort_is_a_variable_of_the_template_beside_others() -> None:
    request = parse(reasoning_effort="low", chat_template_kwargs={"enable_thinking": False}, documents=[{"text": "x"}])
    assert request.chat_template_kwargs == {
        "reasoning_effort": "low",
        "enable_thinking": False,
        "documents": [{"text": "x"}],
    }
    assert "another value" in refusal(reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "high"})


def test_an_answer_is_a_chat_completion() -> None:
    body = {"messages": MESSAGES, "model": "asked"}
    answer = chat.response(body, result(Choice("Rain", [1, 2, 3], "stop")), 1_700_000_000)
    assert answer == {
        "id": "chatcmpl-job1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "haiku",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Rain", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 3,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "system_fingerprint": "new",
    }


def test_reasoning_is_told_apart_and_every_choice_is_there() -> None:
    answer = chat.response({}, result(Choice("a", reasoning="hm"), Choice("b", finish_reason="length")), 0)
    first, second = answer["choices"]
    assert first["message"] == {"role": "assistant", "content": "a", "refusal": None, "reasoning_content": "hm"}
    assert (second["index"], second["message"]["content"], second["finish_reason"]) == (1, "b", "length")


CALLS = [ToolCall("a1", "weather", '{"city": "Rom"}'), ToolCall("b2", "time", "{}")]


def test_calls_of_tools_are_in_the_message_and_say_why_the_answer_ended() -> None:
    choices = Choice("", finish_reason="stop", tool_calls=CALLS), Choice("So", [1], "length", tool_calls=CALLS[:1])
    first, second = chat.response({}, result(*choices), 0)["choices"]
    assert first["message"]["tool_calls"] == [
        {"id": "a1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rom"}'}},
        {"id": "b2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]
    assert (first["message"]["content"], first["finish_reason"]) == (None, "tool_calls")
    assert (second["message"]["content"], second["finish_reason"]) == ("So", "length")


def test_log_probabilities_stand_beside_the_message() -> None:
    [choice] = chat.response({}, result(Choice("Theé", logprobs=LOGPROBS)), 0)["choices"]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["The", "bytes:\\xc3", "bytes:\\xa9"]


def test_log_probabilities_of_the_prompt_stand_beside_the_choices() -> None:
    assert parse(prompt_logprobs=2).prompt_logprobs == 2
    answer = chat.response({}, result(Choice("a"), Choice("b"), prompt_logprobs=[None]), 0)
    assert answer["prompt_logprobs"] == [None]
