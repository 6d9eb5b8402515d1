"""What streams see, and what is wrong with it."""

from __future__ import annotations

from collections import Counter

import pytest

from orcd.events import End, Error, Event, Started, Token
from tests.bench.streams import Seen, Stream, check_events

STARTED = Started("j", "m", 1, 1)
END = End("length", 3, 3, 1, 2, 3, "")


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([STARTED, Token("a", 1, [5]), Token("bc", 2, [6, 7]), END], ""),
        ([STARTED, Token("a", 1, [5]), Token("c", 3, [7]), END], "token 3 after 1 tokens"),
        ([STARTED, Token("ab", 1, [5, 6]), Token("b", 2, [6]), END], "token 2 after 2 tokens"),
        ([STARTED, Token("a", 1, [5]), END], "1 tokens, not 3"),
        ([STARTED, Token("abc", 1, [5, 6, 7])], "no terminal event"),
        ([STARTED, Token("abc", 1, [5, 6, 7]), END, END], "something follows the terminal event"),
        ([STARTED, Error("CUDA_ERROR", "gone", True)], "CUDA_ERROR: gone"),
    ],
)
def test_each_index_is_wanted_once_and_in_order_and_then_one_end(events: list[Event], problem: str) -> None:
    assert check_events(events, 3) == problem


def test_rate_and_silence_come_from_arrivals_in_all_processes_and_streams_are_found_by_job() -> None:
    one = Seen([Stream("a", 0.0, 0.1, 2.0)], Counter({10: 4, 50: 4, 150: 4}))
    other = Seen([Stream("b", 1.0, 1.4, 2.0), Stream("c", 0.5)], Counter({50: 2, 140: 6}))
    seen = Seen.of([one, other])
    assert seen.tokens_per_s(0.0, 1.0) == 10
    assert seen.tokens_per_s(0.5, 1.5) == 12
    assert seen.silence_s(0.45) == pytest.approx(0.9)
    assert [stream.job_id for stream in seen.of_jobs({"a", "c", "of others"})] == ["a", "c"]
