from __future__ import annotations

import threading
import time
from unittest.mock import Mock

import pytest
import redis

from orcd.store import backoff
from orcd.store.backoff import Backoff, retry

ERROR = ConnectionError("gone")


def test_pauses_double_up_to_the_maximum():
    backoff = Backoff(0.1, 1.0)
    assert [backoff.failed(ERROR) for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_a_success_makes_the_next_failure_the_first(now: list[float]):
    backoff = Backoff(0.1, 1.0, give_up_after_s=5)
    backoff.failed(ERROR)
    now[0] += 4
    assert backoff.failed(ERROR) == 0.2
    backoff.succeeded()
    now[0] += 4
    assert backoff.failed(ERROR) == 0.1


def test_it_gives_up_some_time_after_the_first_failure_with_the_last_error(now: list[float]):
    backoff = Backoff(0.1, 1.0, give_up_after_s=5)
    now[0] += 60
    backoff.failed(OSError("the first"))
    now[0] += 5.1
    with pytest.raises(ConnectionError, match="gone"):
        backoff.failed(ERROR)


def test_the_time_until_it_gives_up_may_begin_before_the_first_failure(now: list[float]):
    backoff = Backoff(1.0, 1.0, give_up_after_s=5, since=now[0])
    now[0] += 5.1
    with pytest.raises(ConnectionError):
        backoff.failed(ERROR)


def test_without_a_limit_it_never_gives_up(now: list[float]):
    backoff = Backoff(0.05, 2.0)
    backoff.failed(ERROR)
    now[0] += 1e9
    assert backoff.failed(ERROR) == 0.1


class Call:
    """Fails with each of ``errors`` in turn, then returns its own number."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.times: list[float] = []
        self.told: list[Exception] = []

    def __call__(self) -> int:
        self.times.append(time.monotonic())
        if self._errors:
            raise self._errors.pop(0)
        return len(self.times)


def test_a_call_is_tried_again_until_redis_takes_it_with_ever_longer_pauses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backoff, "FIRST_RETRY_S", 0.02)
    errors = [redis.ConnectionError("away"), redis.TimeoutError("slow"), redis.ReadOnlyError("replica")]
    call = Call(*errors)
    assert retry(call, threading.Event(), call.told.append) == 4
    assert call.told == errors
    pauses = [later - earlier for earlier, later in zip(call.times, call.times[1:], strict=False)]
    assert [pause >= least for pause, least in zip(pauses, (0.02, 0.04, 0.08), strict=True)] == [True] * 3


def test_no_pause_is_longer_than_the_caller_allows():
    call, stopping = Call(*[redis.ConnectionError("away")] * 12), Mock(is_set=lambda: False)
    assert retry(call, stopping, call.told.append, longest_s=0.2) == 13
    assert [pause_s for ((pause_s,), _) in stopping.wait.call_args_list] == [0.05, 0.1, *[0.2] * 10]


def test_an_error_that_is_not_redis_own_is_raised_at_once():
    call = Call(KeyError("a bug"))
    with pytest.raises(KeyError):
        retry(call, threading.Event(), call.told.append)
    assert (len(call.times), call.told) == (1, [])


def test_whoever_stops_waits_for_no_redis_and_gets_nothing():
    stopping = threading.Event()
    call = Call(*[redis.ConnectionError("away")] * 100)
    threading.Timer(0.1, stopping.set).start()
    start = time.monotonic()
    assert retry(call, stopping, call.told.append) is None
    assert time.monotonic() - start < 10
    num_calls = len(call.times)
    assert retry(call, stopping, call.told.append) is None
    assert len(call.times) == num_calls, "nothing is begun any more"
