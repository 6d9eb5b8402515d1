"""Why an answer ended, for metrics."""

from __future__ import annotations

import pytest

from orcd.result import Choice, Result
from tasks.observe.metrics.finish_reason import finish_reason


@pytest.mark.parametrize(
    ("state", "said", "reason"),
    [
        ("succeeded", "length", "length"),
        ("succeeded", "tool_calls", "stop"),
        ("cancelled", None, "abort"),
        ("expired", None, "abort"),
        ("failed", None, "error"),
        ("failed", "stop", "stop"),
    ],
)
def test_an_answer_has_one_of_four_reasons(state: str, said: str | None, reason: str) -> None:
    assert finish_reason(Result("j", state), Choice(finish_reason=said)) == reason
