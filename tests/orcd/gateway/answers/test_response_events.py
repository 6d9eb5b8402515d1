from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from orcd.events import End, Error, Event, Started, Token, ToolCallDelta
from orcd.gateway.answers.response_events import ResponseEvents, num_tokens_seen

LOG: list[Event] = [
    Started("resp_1", "m", 1, 1),
    Token("", 1, [7], analysis="Let me"),
    Token("Hel", 2, [8, 9], analysis=" see."),
    Started("resp_1", "m", 2, 2),
    Token("lo", 4, [10]),
    End("stop", 5, 4, 0, 0, 0, "", cached_tokens=3),
]


def events_of(log: list[Event]) -> list[dict[str, Any]]:
    events = ResponseEvents("1", {"model": "m", "metadata": {"a": "b"}}, 5)
    return events.begin() + [made for event in log for made in events.feed(event)]


def test_a_log_becomes_items_that_open_grow_and_close() -> None:
    assert [event["type"].removeprefix("response.") for event in events_of(LOG)] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


def test_the_last_event_holds_the_whole_response() -> None:
    response = events_of(LOG)[-1]["response"]
    reasoning, message = response["output"]
    assert reasoning["content"][0]["text"] == "Let me see."
    assert message["content"][0]["text"] == "Hello"
    assert message["status"] == response["status"] == "completed"
    assert response["usage"]["total_tokens"] == 9
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 3
    assert response["metadata"] == {"a": "b"}


CALLS: list[Event] = [
    Token("", 1, [1], analysis="hm"),
    Token("So", 2, [2]),
    Token("", 3, [3], tool_calls=[ToolCallDelta(0, "a1", "f", "{")]),
    Token("", 4, [4, 5], tool_calls=[ToolCallDelta(0, arguments="}"), ToolCallDelta(1, "b2", "g", "{}")]),
    Token("!", 6, [6]),
    End("stop", 5, 6, 0, 0, 0, ""),
]


def test_calls_of_tools_are_items_beside_the_message() -> None:
    events = events_of(CALLS)
    found = [
        (event["type"].removeprefix("response."), event["output_index"]) for event in events if "output_index" in event
    ]
    calls = [
        ("output_item.added", 2),
        ("function_call_arguments.delta", 2),
        ("function_call_arguments.delta", 2),
        ("function_call_arguments.done", 2),
        ("output_item.done", 2),
        ("output_item.added", 3),
        ("function_call_arguments.delta", 3),
        ("output_text.delta", 1),
    ]
    start = found.index(("output_item.added", 2))
    assert found[start : start + len(calls)] == calls
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    ended = events[-1]["response"]
    assert sorted(done, key=lambda item: item["type"]) == sorted(ended["output"], key=lambda item: item["type"])
    assert [item["type"] for item in ended["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert ended["output"][2] | {"arguments": "{}", "call_id": "a1", "name": "f"} == ended["output"][2]
    numbers = [event["sequence_number"] for event in events]
    assert all(first < second for first, second in pairwise(numbers))


def test_an_answer_of_calls_alone_has_no_message() -> None:
    events = events_of([CALLS[2], End("length", 5, 1, 0, 0, 0, "")])
    assert [item["status"] for item in events[-1]["response"]["output"]] == ["incomplete"]
    assert events[-2]["item"] == events[-1]["response"]["output"][0]


def test_sequence_numbers_rise_and_say_how_many_tokens_a_client_has() -> None:
    events = events_of(LOG)
    numbers = [event["sequence_number"] for event in events]
    assert all(first < second for first, second in pairwise(numbers))
    seen = [num_tokens_seen(event["sequence_number"]) for event in events if event["type"].endswith(".delta")]
    assert seen == [1, 3, 3, 4]


def test_a_delta_has_the_same_number_however_the_log_was_cut_before_it() -> None:
    other = [LOG[0], Token("Hel", 1, [7, 8, 9], analysis="Let me see."), *LOG[3:]]
    assert events_of(LOG)[-5:] == events_of(other)[-5:]


@pytest.mark.parametrize(
    ("end", "kind", "status", "detail"),
    [
        (End("length", 5, 1, 0, 0, 0, ""), "incomplete", "incomplete", {"reason": "max_output_tokens"}),
        (Error("CANCELLED", "cancelled", False), "failed", "cancelled", None),
        (Error("POISONED", "given up", False), "failed", "failed", None),
    ],
)
def test_every_end_closes_what_is_open(end: Event, kind: str, status: str, detail: Any) -> None:
    events = events_of([Token("a", 1, [1]), end])
    response = events[-1]["response"]
    assert events[-1]["type"] == f"response.{kind}"
    assert events[-2]["type"] == "response.output_item.done"
    assert response["status"] == status
    assert response.get("incomplete_details") == detail
    assert response["output"][0]["content"][0]["text"] == "a"


def test_an_answer_without_tokens_is_an_empty_message() -> None:
    events = events_of([End("stop", 5, 0, 0, 0, 0, "")])
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == ""
