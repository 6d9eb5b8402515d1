"""The counts of tokens in responses."""

from __future__ import annotations

from typing import Any


def usage(tokens_in: int, tokens_out: int) -> dict[str, int]:
    """As chat completions and completions have it."""
    return {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}


def response_usage(tokens_in: int, tokens_out: int) -> dict[str, Any]:
    """As responses and batches have it.

    Tokens from the cache and tokens of reasoning are not counted apart, and clients insist on a number.
    """
    return {
        "input_tokens": tokens_in,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": tokens_out,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens_in + tokens_out,
    }
