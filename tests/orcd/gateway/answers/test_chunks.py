from __future__ import annotations

from typing import Any

from orcd.events import End, Event, Started, Token, TokenLogprob, ToolCallDelta
from orcd.gateway.answers.chunks import Chunks

STARTED = Started("j", "m", 5000, 1)
END = End("stop", 4, 3, 0, 0, 0, "", cached_tokens=2)


def made(events: list[Event], **options: Any) -> list[dict[str, Any]]:
    options = {"is_chat": True, "include_usage": False, "num_choices": 1, **options}
    chunks = Chunks("j", "asked", **options)
    return [chunk for event in events for chunk in chunks.feed(event)]


def test_a_chat_has_the_role_the_texts_and_the_reason() -> None:
    found = made([STARTED, Token("", 1, [1], analysis="hm"), Token("a", 2, [2, 3]), Started("j", "m", 9000, 2), END])
    assert [chunk["choices"][0]["delta"] for chunk in found] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"content": "a"},
        {},
    ]
    assert found[-1]["choices"][0]["finish_reason"] == "stop"
    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in found} == {("chatcmpl-j", 5, "m")}


def test_every_chunk_names_what_its_tokens_come_from() -> None:
    def started(epoch: int, fingerprint: str) -> Started:
        return Started("j", "m", 5000, epoch, fingerprint=fingerprint)

    log: list[Event] = [started(1, "old"), Token("a", 1, [1]), started(2, "new"), Token("b", 2, [2]), END]
    found = [chunk["system_fingerprint"] for chunk in made(log, include_usage=True)]
    assert found == ["old", "old", "new", "new", "new"]
    assert [chunk["system_fingerprint"] for chunk in made([STARTED, END])] == [None, None], "as a whole answer has it"


CALLS: list[Event] = [
    Token("So", 1, [1], tool_calls=[ToolCallDelta(0, "a1", "f", "{")]),
    Token("", 2, [2], tool_calls=[ToolCallDelta(0, arguments="}"), ToolCallDelta(1, "b2", "g", "{}")]),
]


def test_calls_of_tools_are_deltas_and_the_reason() -> None:
    found = made([STARTED, *CALLS, END])
    assert [chunk["choices"][0]["delta"] for chunk in found[1:]] == [
        {
            "content": "So",
            "tool_calls": [{"index": 0, "id": "a1", "type": "function", "function": {"name": "f", "arguments": "{"}}],
        },
        {
            "tool_calls": [
                {"index": 0, "function": {"arguments": "}"}},
                {"index": 1, "id": "b2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ]
        },
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in found] == [None, None, None, "tool_calls"]
    others = [Token("", 3, [], finish="stop"), Token("a", 1, [1], choice=1), Token("", 2, [], choice=1, finish="stop")]
    found = made([STARTED, *CALLS, *others], num_choices=2)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in found]
    assert [reason for reason in reasons if reason] == ["tool_calls", "stop"], "each choice has its own"


def test_with_several_choices_each_says_its_own_reason() -> None:
    found = made(
        [STARTED, Token("a", 1, [1], choice=1), Token("", 2, [], choice=1, finish="length"), END], num_choices=2
    )
    assert [chunk["choices"][0]["index"] for chunk in found] == [0, 1, 1, 1]
    assert found[-1]["choices"][0]["finish_reason"] == "length"


def test_usage_comes_last_and_is_null_before() -> None:
    *others, last = made([STARTED, Token("a", 1, [1]), END], include_usage=True)
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 7)
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert all(chunk["usage"] is None for chunk in others)


def test_log_probabilities_of_completions_know_where_their_tokens_begin() -> None:
    logprobs = [TokenLogprob(1, -0.5, {1: -0.5}, {1: b"a"})]
    events: list[Event] = [STARTED, Token("a", 1, [1], logprobs=logprobs), Token("b", 2, [1], logprobs=logprobs), END]
    found = made(events, is_chat=False)
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in found[:2]] == [[0], [1]]
    chat = made(events)
    assert chat[1]["choices"][0]["logprobs"]["content"][0]["token"] == "a"


def test_chunks_of_several_jobs_are_those_of_one_answer() -> None:
    options = {"is_chat": False, "include_usage": True, "num_choices": 2, "echoes": ["x", ""]}
    chunks = Chunks("j", "asked", **options)  # type: ignore[arg-type]
    log: list[tuple[int, Event]] = [
        (1, Started("k", "m", 7000, 1)),
        (1, Token("a", 1, [1], choice=1)),
        (0, STARTED),
        (0, Token("b", 1, [1], choice=1)),
        (1, Token("", 2, [2], choice=1, finish="stop")),
        (1, END),
        (0, END),
    ]
    found = [chunk for job, event in log for chunk in chunks.feed(event, job)]
    texts = [(chunk["choices"][0]["index"], chunk["choices"][0]["text"]) for chunk in found[:-1]]
    assert texts == [(3, "a"), (0, "x"), (1, "x"), (1, "b"), (3, "")]
    assert [chunk["choices"][0]["finish_reason"] for chunk in found[:-1]] == [None] * 4 + ["stop"]
    assert {(chunk["id"], chunk["created"]) for chunk in found} == {("cmpl-j", 7)}
    assert (found[-1]["choices"], found[-1]["usage"]["total_tokens"]) == ([], 14)


def test_of_several_jobs_with_one_choice_each_has_its_reason() -> None:
    chunks = Chunks("j", "asked", is_chat=False, include_usage=False, num_choices=1, echoes=["", ""])
    found = [chunk for job in (1, 0) for event in (STARTED, END) for chunk in chunks.feed(event, job)]
    assert [(chunk["choices"][0]["index"], chunk["choices"][0]["finish_reason"]) for chunk in found] == [
        (1, "stop"),
        (0, "stop"),
    ]
