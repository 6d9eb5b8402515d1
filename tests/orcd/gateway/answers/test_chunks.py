from __future__ import annotations

from typing import Any

from orcd.events import End, Event, Started, Token, TokenLogprob
from orcd.gateway.answers.chunks import Chunks

STARTED = Started("j", "m", 5000, 1)
END = End("stop", 4, 3, 0, 0, 0, "")


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


def test_with_several_choices_each_says_its_own_reason() -> None:
    found = made(
        [STARTED, Token("a", 1, [1], choice=1), Token("", 2, [], choice=1, finish="length"), END], num_choices=2
    )
    assert [chunk["choices"][0]["index"] for chunk in found] == [0, 1, 1, 1]
    assert found[-1]["choices"][0]["finish_reason"] == "length"


def test_usage_comes_last_and_is_null_before() -> None:
    *others, last = made([STARTED, Token("a", 1, [1]), END], include_usage=True)
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 7)
    assert all(chunk["usage"] is None for chunk in others)


def test_log_probabilities_of_completions_know_where_their_tokens_begin() -> None:
    logprobs = [TokenLogprob(1, -0.5, {1: -0.5}, {1: b"a"})]
    events: list[Event] = [STARTED, Token("a", 1, [1], logprobs=logprobs), Token("b", 2, [1], logprobs=logprobs), END]
    found = made(events, is_chat=False)
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in found[:2]] == [[0], [1]]
    chat = made(events)
    assert chat[1]["choices"][0]["logprobs"]["content"][0]["token"] == "a"
