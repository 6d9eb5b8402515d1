"""Counts of tokens in responses."""

from __future__ import annotations

from orcd.events import End
from orcd.openai.usage import response_usage, usage


def test_tokens_of_prompts_and_answers_are_counted_apart_and_together() -> None:
    assert usage(End("stop", 9, 3, 0, 0, 0, "", cached_tokens=8)) == {
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
    two = usage(End("stop", 9, 3, 0, 0, 0, "", cached_tokens=8), End("stop", 1, 2, 0, 0, 0, ""))
    assert (two["prompt_tokens"], two["completion_tokens"], two["total_tokens"]) == (10, 5, 15)
    assert two["prompt_tokens_details"] == {"cached_tokens": 8}
    counted = response_usage(9, 3, 8)
    assert (counted["input_tokens"], counted["output_tokens"], counted["total_tokens"]) == (9, 3, 12)
    assert counted["input_tokens_details"]["cached_tokens"] == 8
