"""Counts of tokens in responses."""

from __future__ import annotations

from orcd.openai.usage import usage
from tests.orcd.openai.results import result


def test_tokens_are_counted_over_all_choices() -> None:
    assert usage(result()) == {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
