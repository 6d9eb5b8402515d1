"""Log probabilities in both of OpenAI's forms."""

from __future__ import annotations

from orcd.events import TokenLogprob
from orcd.openai import logprobs
from tests.orcd.openai.results import LOGPROBS, result


def test_a_list_has_an_entry_a_token_with_its_bytes() -> None:
    first, second, third = logprobs.listed(LOGPROBS)
    assert first == {
        "token": "The",
        "logprob": -0.25,
        "bytes": [84, 104, 101],
        "top_logprobs": [
            {"token": "The", "logprob": -0.25, "bytes": [84, 104, 101]},
            {"token": "é", "logprob": -1.5, "bytes": [0xC3, 0xA9]},
        ],
    }
    assert [entry["token"] for entry in second["top_logprobs"]] == [" rain", "bytes:\\xc3"], "the likeliest is first"
    assert (third["token"], third["bytes"], third["top_logprobs"]) == ("bytes:\\xa9", [0xA9], [])


def test_columns_say_where_each_token_begins() -> None:
    columns = logprobs.columns(LOGPROBS, 10)
    assert columns["tokens"] == ["The", "bytes:\\xc3", "bytes:\\xa9"]
    assert columns["token_logprobs"] == [-0.25, -0.5, -0.75]
    likeliest = [{"The": -0.25, "é": -1.5}, {" rain": -0.125, "bytes:\\xc3": -0.5}, {"bytes:\\xa9": -0.75}]
    assert columns["top_logprobs"] == likeliest, "each with the token that was drawn"
    assert columns["text_offset"] == [10, 13, 13]


def test_those_of_a_prompt_are_by_token_id_as_vllm_has_them() -> None:
    told = logprobs.of_prompt(result(prompt_logprobs=[None, *LOGPROBS]))
    assert told == {
        "prompt_logprobs": [
            None,
            {
                "5": {"logprob": -0.25, "rank": 1, "decoded_token": "The"},
                "9": {"logprob": -1.5, "rank": 2, "decoded_token": "é"},
            },
            {
                "6": {"logprob": -0.5, "rank": 2, "decoded_token": "bytes:\\xc3"},
                "7": {"logprob": -0.125, "rank": 1, "decoded_token": " rain"},
            },
            {"7": {"logprob": -0.75, "rank": None, "decoded_token": "bytes:\\xa9"}},
        ]
    }
    assert list(told["prompt_logprobs"][2]) == ["6", "7"], "the prompt's token comes first"
    assert logprobs.of_prompt(result()) == {}


def test_a_token_that_was_not_spelt_is_named_by_its_id() -> None:
    [entry] = logprobs.listed([TokenLogprob(5, -1.0)])
    assert (entry["token"], entry["bytes"]) == ("token_id:5", None)
