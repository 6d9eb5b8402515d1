"""Completions: what a body asks for, and the object that answers it."""

from __future__ import annotations

from typing import Any

import pytest

from orcd.errors import InvalidRequest
from orcd.events import TokenLogprob
from orcd.openai import completions
from orcd.result import Choice, Result
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
        (["a", "b"], "prompt: only one prompt is supported here; send a request for each"),
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
        ({"prompt": "x", "echo": True, "logprobs": 0, "prompt_logprobs": 1}, "logprobs: prompt_logprobs says another"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens: "),
        ({"prompt": "x", "echo": True, "max_tokens": False}, "max_tokens: "),
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


ECHOED = result(
    Choice(" rain", [7], "length", logprobs=[LOGPROBS[2]]), prompt_logprobs=[None, *LOGPROBS[:2]], prompt_start=b"So, "
)
"""An answer to four tokens, of which the first and the last end within a character."""


def test_echo_with_logprobs_has_those_of_the_prompt_too() -> None:
    body = {"prompt": "So, Theé", "echo": True, "logprobs": 1, "max_tokens": 1}
    assert (parse(**body).logprobs, parse(**body).prompt_logprobs) == (1, 1)
    [choice] = completions.response(body, ECHOED, 0)["choices"]
    assert choice["text"] == "So, Theé rain"
    assert "prompt_logprobs" not in choice, "nobody asked for vLLM's"
    columns = choice["logprobs"]
    assert columns["tokens"] == ["So, ", "The", "bytes:\\xc3", "bytes:\\xa9"]
    assert columns["token_logprobs"] == [None, -0.25, -0.5, -0.75]
    assert columns["top_logprobs"][:2] == [None, {"The": -0.25, "é": -1.5}]
    assert len(columns["top_logprobs"]) == len(columns["text_offset"]) == 4


@pytest.mark.parametrize(
    ("start", "prompt", "offsets"),
    [(b"So, ", "So, The!", [0, 4, 7]), (b"<s>", "The!", [0, 0, 3]), (b"<s>", "Thé!", [0, 0, 3])],
    ids=["as it is", "with a token in front", "in other letters"],
)
def test_offsets_are_in_the_text_of_the_prompt(start: bytes, prompt: str, offsets: list[int]) -> None:
    told = [None, LOGPROBS[0], TokenLogprob(1, -1.0, {}, {1: b"!"})]
    answered = result(Choice("", [], "stop"), prompt_logprobs=told, prompt_start=start)
    [choice] = completions.response({"prompt": prompt, "echo": True, "logprobs": 0}, answered, 0)["choices"]
    assert choice["logprobs"]["text_offset"] == offsets


@pytest.mark.parametrize("prompt", [[4, 5, 6], [[4, 5, 6]]])
def test_the_text_of_token_ids_is_known_from_their_log_probabilities(prompt: Any) -> None:
    body = {"prompt": prompt, "echo": True}
    assert parse(**body).prompt_logprobs == 0
    [choice] = completions.response(body, ECHOED, 0)["choices"]
    assert (choice["text"], choice["logprobs"] is None) == ("So, The� rain", False)


def test_echo_of_no_tokens_is_the_prompt_alone() -> None:
    body = {"prompt": "So, Theé", "echo": True, "logprobs": 0, "max_tokens": 0}
    assert parse(**body).max_tokens == 1
    answer = completions.response(body, ECHOED, 0)
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("So, Theé", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -0.25, -0.5]
    assert (answer["usage"]["completion_tokens"], answer["usage"]["total_tokens"]) == (0, 9)


def test_log_probabilities_are_columns() -> None:
    [choice] = completions.response({"prompt": "x"}, result(Choice("Theé", logprobs=LOGPROBS)), 0)["choices"]
    assert choice["logprobs"]["token_logprobs"] == [-0.25, -0.5, -0.75]


def test_every_choice_has_the_log_probabilities_of_the_prompt() -> None:
    assert parse(prompt="x", prompt_logprobs=0).prompt_logprobs == 0
    answered = result(Choice("a"), Choice("b"), prompt_logprobs=[None])
    answer = completions.response({"prompt": "x", "prompt_logprobs": 0}, answered, 0)
    assert [choice["prompt_logprobs"] for choice in answer["choices"]] == [[None], [None]]


@pytest.mark.parametrize("prompts", [["a", "b"], [[3], [4, 5]], ["a", [3]]])
def test_a_body_may_have_several_prompts(prompts: list[Any]) -> None:
    alone = [parse(prompt=prompt, seed=5) for prompt in prompts]
    assert completions.parse_all({"prompt": prompts, "seed": 5}, {}) == alone


@pytest.mark.parametrize("prompt", ["a", ["a"], [3, 4], [[3, 4]]])
def test_a_body_with_one_prompt_is_one_request(prompt: Any) -> None:
    assert completions.parse_all({"prompt": prompt}, {}) == [parse(prompt=prompt)]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": ["a", ""]}, "prompt[1]: must not be empty"),
        ({"prompt": ["a", 5]}, "prompt[1]: must be text or token ids"),
        ({"prompt": ["a", None]}, "prompt[1]: must be text or token ids"),
        ({"prompt": [["a"], ["b"]]}, "prompt[0][0]: expected `int`"),
        ({"prompt": [[1], [1, "x"]]}, "prompt[1][1]: expected `int`"),
        ({"prompt": ["a", "b"], "temperature": 9}, "temperature: "),
        ({"prompt": ["a"] * 129}, "prompt: 129 prompts, at most 128"),
        ({"prompt": []}, "prompt: expected `array` of length >= 1"),
    ],
)
def test_what_is_wrong_with_one_of_several_prompts_is_told_by_its_place(body: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completions.parse_all(body, {})
    assert caught.value.message.startswith(said)


def test_a_worker_s_error_says_which_prompt() -> None:
    assert completions.of_prompt(1, "the prompt has 9 tokens") == "prompt[1]: the prompt has 9 tokens"
    assert completions.of_prompt(1, "prompt: has no tokens") == "prompt[1]: has no tokens"


def test_choices_of_several_prompts_come_prompt_by_prompt() -> None:
    first = result(Choice(" rain", finish_reason="stop"), Choice(" sun"), prompt_logprobs=[None])
    second = Result("job2", "succeeded", [Choice(" x"), Choice(" y", logprobs=LOGPROBS)], tokens_in=1, tokens_out=2)
    body = {"prompt": ["The", "A"], "echo": True, "prompt_logprobs": 0}
    answer = completions.response_of_all(body, [first, second], 5)
    assert (answer["id"], answer["created"], answer["system_fingerprint"]) == ("cmpl-job1", 5, "new")
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == ["The rain", "The sun", "A x", "A y"]
    assert answer["choices"][3]["logprobs"]["text_offset"][0] == 1
    assert ["prompt_logprobs" in choice for choice in answer["choices"]] == [True, True, False, False]
    assert answer["usage"]["total_tokens"] == 15
