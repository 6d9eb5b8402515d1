"""Times between tokens."""

from __future__ import annotations

import pytest

from tasks.observe.metrics.token_gaps import SECONDS, TokenGaps
from worker.contract import TokenOutput


def counted(gaps: TokenGaps) -> dict[float, int]:
    """How many gaps there are of each bound that has any."""
    counts = zip((*SECONDS, float("inf")), gaps.counts.counts, strict=True)
    return {bound: count for bound, count in counts if count}


def test_an_answers_tokens_are_as_far_apart_as_they_come() -> None:
    gaps = TokenGaps()
    gaps.add([TokenOutput("a", 0, (1,)), TokenOutput("b", 0, (1,))], now=10.0)
    gaps.add([TokenOutput("a", 0, (2,))], now=10.02)
    gaps.add([TokenOutput("a", 0, (3,), "stop"), TokenOutput("b", 0, (2,), "stop")], now=10.1)
    assert counted(gaps) == {0.025: 1, 0.1: 2}
    assert gaps.counts.total == pytest.approx(0.02 + 0.08 + 0.1)


def test_tokens_that_come_together_share_the_time_before_them() -> None:
    gaps = TokenGaps()
    gaps.add([TokenOutput("a", 0, (1, 2, 3))], now=5.0)
    gaps.add([TokenOutput("a", 0, (4, 5))], now=5.12)
    assert counted(gaps) == {0.075: 2}


def test_choices_of_a_request_and_requests_after_each_other_are_answers_of_their_own() -> None:
    gaps = TokenGaps()
    gaps.add([TokenOutput("a", 0, (1,)), TokenOutput("a", 1, (1,), "length")], now=1.0)
    gaps.add([TokenOutput("a", 1, (1,))], now=3.0)
    assert counted(gaps) == {}
    gaps.add([TokenOutput("a", 0, (), "abort")], now=4.0)
    gaps.add([TokenOutput("a", 0, (1,))], now=5.0)
    assert counted(gaps) == {}


def test_of_the_time_between_two_engines_nothing_is_told() -> None:
    gaps = TokenGaps()
    gaps.add([TokenOutput("a", 0, (1,))], now=1.0)
    gaps.clear()
    gaps.add([TokenOutput("a", 0, (2,))], now=60.0)
    assert counted(gaps) == {}
