"""The input of responses becomes the messages of a chat."""

from __future__ import annotations

from typing import Any

import pytest

from orcd.errors import InvalidRequest
from orcd.openai.input_items import messages_of

CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'}


def test_messages_and_their_parts_become_those_of_a_chat() -> None:
    items = [
        {"role": "developer", "content": "be brief"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "no"}]},
    ]
    assert messages_of(None, items) == [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "no"}]},
    ]


def test_calls_of_tools_belong_to_one_message_and_keep_their_results() -> None:
    other = {**CALL, "call_id": "c2", "name": "time"}
    output = {"type": "function_call_output", "call_id": "c1", "output": "rain"}
    question, calls, answer = messages_of(None, [{"role": "user", "content": "?"}, CALL, other, output])
    assert question["role"] == "user"
    assert [(call["id"], call["function"]["name"]) for call in calls["tool_calls"]] == [
        ("c1", "weather"),
        ("c2", "time"),
    ]
    assert answer == {"role": "tool", "tool_call_id": "c1", "content": "rain"}


def test_reasoning_belongs_to_the_message_after_it() -> None:
    item = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    [message] = messages_of(None, [item, CALL])
    assert message["reasoning_content"] == "hm"
    assert message["tool_calls"][0]["function"]["name"] == "weather"


def test_what_was_said_before_stands_between_the_instructions_and_the_input() -> None:
    before = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    instructions = {"role": "system", "content": "be brief"}
    assert messages_of("be brief", "c", before) == [instructions, *before, {"role": "user", "content": "c"}]


def test_an_empty_text_is_a_message_as_it_is_in_chats() -> None:
    assert messages_of(None, "") == [{"role": "user", "content": ""}]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "input: must be text or a list of items"),
        ([], "input: must be text or a list of items"),
        ([5], "input[0]: must be an object"),
        ([{"content": "x"}], "input[0]: needs a role"),
        ([{"type": "item_reference", "id": "x"}], "input[0].type: only message"),
        ([{"type": ["x"]}], "input[0].type: only message"),
        ([{"role": "user", "content": 5}], "input[0].content: must be text or a list of parts"),
        ([{**CALL, "type": "function_call_output", "output": {}}], "input[0].output: must be text or a list of parts"),
        ([{"role": "user", "content": [{"type": "input_image"}]}], "input[0].content[0]: only parts of text"),
        ([{"role": "user", "content": [{"type": ["text"]}]}], "input[0].content[0]: only parts of text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "input[0].content[0].text: must be text"),
        ([{**CALL, "arguments": {}}], "input[0].arguments: must be text"),
        ([{"type": "reasoning", "content": "x"}], "input[0].content: must be a list of texts"),
    ],
)
def test_an_item_that_is_no_message_is_named(given: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        messages_of(None, given)
    assert caught.value.message.startswith(said)


def test_instructions_must_be_text() -> None:
    with pytest.raises(InvalidRequest, match=r"^instructions: must be text"):
        messages_of([], "hi")
