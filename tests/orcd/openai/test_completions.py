"""Completions: what a body asks for, and the object that answers it."""

from __future__ import annotations

from typing import Any

import pytest

from orcd.errors import InvalidRequest
from orcd.openai import completions
from orcd.result import Choice
from tests.orcd.openai.results import LOGPROBS, result


def parse(**body: Any) -> Any:
    return completions.parse(body, {})


def refusal(**body: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(**body)
    return caught.value.message


@pytest.mark.parametrize("prompt", ["rain", ["rain"]])
def test_a_prompt_is_text(prompt: Any) -> None:
    assert parse(prompt=prompt).prompt == "rain"


@pytest.mark.parametrize("prompt", [[3, 4], [[3, 4]]])
def test_a_prompt_is_token_ids(prompt: Any) -> None:
    assert parse(prompt=prompt).prompt_token_ids == [3, 4]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (None, "prompt: must be given"),
        ("", "prompt: must not be empty"),
        (5, "prompt: expected `str | null`"),
        ([], "prompt: expected `array` of length >= 1"),
        ([1, "x"], "prompt[1]: expected `int`"),
        (["a", "b"], "prompt: only one prompt a request is supported"),
    ],
)
def test_any_other_prompt_is_refused_by_name(prompt: Any, said: str) -> None:
    assert refusal(prompt=prompt).startswith(said)


def test_an_answer_has_openais_length_unless_another_is_given() -> None:
    assert parse(prompt="x").max_tokens == 16
    assert parse(prompt="x", max_tokens=5).max_tokens == 5
    assert completions.parse({"prompt": "x"}, {"max_tokens": 7}).max_tokens == 7


def test_log_probabilities_are_a_number() -> None:
    assert parse(prompt="x", logprobs=2).logprobs == 2
    assert refusal(prompt="x", logprobs=True).startswith("logprobs: ")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": "x", "suffix": "y"}, "suffix is not supported"),
        ({"prompt": "x", "best_of": 3}, "best_of is not supported: use n"),
        ({"prompt": "x", "echo": 1}, "echo: must be true or false"),
        ({"prompt": [1], "echo": True}, "echo: needs a prompt of text"),
        ({"prompt": "x", "echo": True, "logprobs": 0}, "echo: log probabilities of a prompt are not supported"),
        ({"prompt": "x", "messages": []}, "messages is not supported: chats have it"),
    ],
)
def test_what_is_not_supported_says_so(body: dict[str, Any], said: str) -> None:
    assert refusal(**body).startswith(said)


@pytest.mark.parametrize("body", [{"suffix": ""}, {"best_of": 1}, {"echo": False}, {"suffix": None}])
def test_what_asks_for_nothing_is_no_fault(body: dict[str, Any]) -> None:
    assert parse(prompt="x", **body) == parse(prompt="x")


def test_an_answer_is_a_text_completion() -> None:
    answer = completions.response({"prompt": "The"}, result(Choice(" rain", [1, 2, 3], "length")), 5)
    assert answer == {
        "id": "cmpl-job1",
        "object": "text_completion",
        "created": 5,
        "model": "haiku",
        "choices": [{"index": 0, "text": " rain", "logprobs": None, "finish_reason": "length"}],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 3,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "system_fingerprint": "new",
    }


@pytest.mark.parametrize("prompt", ["The", ["The"]])
def test_echo_puts_the_prompt_in_front_of_every_choice(prompt: Any) -> None:
    answer = completions.response({"prompt": prompt, "echo": True}, result(Choice(" rain"), Choice(" sun")), 0)
    assert [choice["text"] for choice in answer["choices"]] == ["The rain", "The sun"]


def test_log_probabilities_are_columns() -> None:
    [choice] = completions.response({"prompt": "x"}, result(Choice("Theé", logprobs=LOGPROBS)), 0)["choices"]
    assert choice["logprobs"]["token_logprobs"] == [-0.25, -0.5, -0.75]


def test_every_choice_has_the_log_probabilities_of_the_prompt() -> None:
    assert parse(prompt="x", prompt_logprobs=0).prompt_logprobs == 0
    answer = completions.response({"prompt": "x"}, result(Choice("a"), Choice("b"), prompt_logprobs=[None]), 0)
    assert [choice["prompt_logprobs"] for choice in answer["choices"]] == [[None], [None]]
