"""Counts of tokens in responses."""

from __future__ import annotations

from orcd.openai.usage import response_usage, usage


def test_tokens_of_prompts_and_answers_are_counted_apart_and_together() -> None:
    assert usage(9, 3) == {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    counted = response_usage(9, 3)
    assert (counted["input_tokens"], counted["output_tokens"], counted["total_tokens"]) == (9, 3, 12)
