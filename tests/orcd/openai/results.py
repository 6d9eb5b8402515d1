"""Results of jobs that succeeded, as responses are made from them."""

from __future__ import annotations

from typing import Any

from orcd.events import TokenLogprob
from orcd.result import Choice, Result

LOGPROBS = [
    TokenLogprob(5, -0.25, {5: -0.25, 9: -1.5}, {5: b"The", 9: "é".encode()}),
    TokenLogprob(6, -0.5, {7: -0.125, 6: -0.5}, {6: "é".encode()[:1], 7: b" rain"}),
    TokenLogprob(7, -0.75, {}, {7: "é".encode()[1:]}),
]
"""Of the three tokens of "Theé"; the last two are halves of one character."""


def result(*choices: Choice, **fields: Any) -> Result:
    """A job of 9 tokens in and 3 out."""
    known = {"tokens_in": 9, "tokens_out": 3, "model": "haiku", "fingerprints": ["old", "new"]}
    return Result("job1", "succeeded", list(choices), **{**known, **fields})
