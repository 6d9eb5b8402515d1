from __future__ import annotations

import time

import pytest

from orcd.store.backoff import Backoff

ERROR = ConnectionError("gone")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the monotonic clock, in a list to be changed."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return clock


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
