"""When tokens came, and how long none came."""

from __future__ import annotations

import time

import pytest
import redis

from orcd.events import Loading, Token, encode_event
from orcd.store import schema
from tests.bench.queue.token_times import TokenTimes


def test_the_times_of_each_jobs_tokens_are_noted_and_nothing_else(redis_url: str, connection: redis.Redis) -> None:
    begin = time.monotonic()
    with TokenTimes(redis_url, ["a", "b"]) as seen:
        for job_id, event in (
            ("a", Token("x", 1, [5])),
            ("b", Token("x", 1, [5])),
            ("a", Loading(50)),
            ("a", Token("y", 2, [6])),
        ):
            while not connection.publish(schema.events_channel(job_id), encode_event(event)):
                time.sleep(0.01)
        seen.wait_for(1)
        end = time.monotonic() + 10
        while len(seen.times["a"]) < 2:
            assert time.monotonic() < end
        with pytest.raises(TimeoutError):
            seen.wait_for(2, 0.05)
    first, second = seen.times["a"]
    assert begin < first <= second < time.monotonic()
    assert len(seen.times["b"]) == 1


def test_a_gap_counts_in_a_span_that_it_reaches_into(redis_url: str) -> None:
    seen = TokenTimes(redis_url, ["a", "b"])
    seen.times |= {"a": [1.0, 2.0, 5.0, 6.0], "b": [2.5]}
    assert seen.gaps_s(3.0, 4.0) == [3.0]
    assert seen.gaps_s(1.5, 5.5) == [1.0, 3.0, 1.0]
    assert seen.gaps_s(7.0, 8.0) == []
