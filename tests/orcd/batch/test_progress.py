"""What a person sees of a batch: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys

import pytest

from orcd.batch import progress
from orcd.batch.progress import Bar


class Clock:
    """Stands in for `time` where the bar looks at it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_gets_a_line_now_and_then_with_the_rate_and_the_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = Bar(num_lines=100, num_done=20)
    for _ in range(500):
        clock.now_s += 0.05
        bar.update(30 if clock.now_s > 110 else 20, 2, 1000)
    bar.close()
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("30 of 100 lines done, 2 failed, 100 tok/s, 70 s left"), (
        "10 lines took 10 s: those of earlier runs do not count"
    )
    assert second.startswith("30 of 100 lines done, 2 failed, 50 tok/s, 14")


def test_before_the_first_job_ends_nobody_knows_how_long_it_takes(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = Bar(num_lines=2000, num_done=20)
    clock.now_s += 20
    bar.update(20, 0, 50_000)
    assert capsys.readouterr().err == "20 of 2000 lines done, 0 failed, 2,500 tok/s, time left unknown\n"


def test_an_update_at_once_does_not_divide_by_no_time(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    Bar(num_lines=1, num_done=0).update(0, 0, 1)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_that_starts_where_an_earlier_run_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = Bar(num_lines=100, num_done=20)
    bar.update(60, 3, 1000)
    bar.close()
    shown = capsys.readouterr().err.split("\r")
    assert any("20/100" in text for text in shown)
    assert "60/100" in shown[-1] and "3 failed" in shown[-1] and "tok/s" in shown[-1]


def test_a_terminal_that_results_are_printed_on_gets_no_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = Bar(num_lines=100, num_done=20, is_drawn=False)
    bar.update(60, 3, 1000)
    bar.close()
    assert capsys.readouterr().err == ""
