"""Why an answer ended, in the words that metrics have for it."""

from __future__ import annotations

from orcd.result import Choice, Result

REASONS = ("stop", "length", "abort", "error")
"""Complete; as long as it may be; cancelled or expired; failed."""


def finish_reason(result: Result, choice: Choice) -> str:
    """One of `REASONS`, for one choice of an ended job."""
    if choice.finish_reason in REASONS:
        return choice.finish_reason
    if result.state == "succeeded":
        return "stop"
    return "error" if result.state == "failed" else "abort"
