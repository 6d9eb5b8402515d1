"""The counts of tokens in responses."""

from __future__ import annotations

from typing import Any

from orcd.events import End
from orcd.result import Result


def usage(*ended: Result | End) -> dict[str, Any]:
    """As chat completions and completions have it: of all jobs that answer a call."""
    tokens_in = sum(each.tokens_in for each in ended)
    tokens_out = sum(each.tokens_out for each in ended)
    return {
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
        "prompt_tokens_details": {"cached_tokens": sum(each.cached_tokens for each in ended)},
    }


def response_usage(tokens_in: int, tokens_out: int, cached_tokens: int) -> dict[str, Any]:
    """As responses and batches have it.

    Tokens written to the cache, and tokens of reasoning, are not counted apart, and clients insist on a number.
    """
    return {
        "input_tokens": tokens_in,
        "input_tokens_details": {"cached_tokens": cached_tokens, "cache_write_tokens": 0},
        "output_tokens": tokens_out,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens_in + tokens_out,
    }
