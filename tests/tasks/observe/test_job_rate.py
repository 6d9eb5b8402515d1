"""How many jobs a worker ends in a second when it has work."""

from __future__ import annotations

import time

import pytest

from tasks.observe.job_rate import JobRate


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    moment = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: moment[0])
    return moment


def pass_time(rate: JobRate, now: list[float], seconds: int, *, ends: int = 0, is_busy: bool = True) -> None:
    for _ in range(seconds):
        now[0] += 1
        for _ in range(ends):
            rate.ended()
        rate.tick(is_busy=is_busy)


def test_only_busy_time_counts(now: list[float]) -> None:
    rate = JobRate()
    assert rate.per_s() == 0
    pass_time(rate, now, 10, ends=3)
    assert rate.per_s() == pytest.approx(3)
    pass_time(rate, now, 3600, is_busy=False)
    assert rate.per_s() == pytest.approx(3), "an idle worker is as fast as it was"


def test_what_was_minutes_ago_is_forgotten(now: list[float]) -> None:
    rate = JobRate()
    pass_time(rate, now, 60, ends=10)
    pass_time(rate, now, 300, ends=2)
    assert rate.per_s() == pytest.approx(2, rel=0.05)


def test_jobs_that_take_long_lower_it_while_they_run(now: list[float]) -> None:
    rate = JobRate()
    pass_time(rate, now, 1, ends=1)
    pass_time(rate, now, 9)
    assert rate.per_s() == pytest.approx(0.1, rel=0.1)


def test_what_is_done_of_jobs_that_run_counts(now: list[float]) -> None:
    rate = JobRate()
    pass_time(rate, now, 10)
    assert rate.per_s(num_done=20.0) == pytest.approx(2, rel=0.2)
