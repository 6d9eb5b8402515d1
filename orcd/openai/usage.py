"""The counts of tokens in responses."""

from __future__ import annotations

from typing import Any

from orcd.result import Result


def usage(result: Result) -> dict[str, Any]:
    """As chat completions and completions have it."""
    return {
        "prompt_tokens": result.tokens_in,
        "completion_tokens": result.tokens_out,
        "total_tokens": result.tokens_in + result.tokens_out,
    }
