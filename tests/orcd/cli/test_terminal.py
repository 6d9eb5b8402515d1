"""What a person sees on the terminal while a job waits and runs."""

from __future__ import annotations

import pytest

from orcd.cli import terminal
from orcd.events import End, Error, Loading, Queued, Started, Token

END = End("stop", 1, 1, 1, 1, 1, "")


def test_a_person_sees_how_long_loading_will_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal.sys.stderr, "isatty", lambda: True)
    events = [
        Queued(1, served=False, reason="no worker serves qwen"),
        Queued(1, reason="waiting for a free slot"),
        Loading(0),
        Loading(40, 2001),
        Started("j", "m", 1, 1),
        Token("frog", 1, [1]),
        END,
    ]
    assert terminal.show_text(events) is None
    out, err = capsys.readouterr()
    assert out == "frog\n"
    shown = [text.strip() for text in err.split("\r") if text.strip()]
    assert shown == [
        *("position 1: no worker serves qwen", "position 1: waiting for a free slot"),
        *("loading the model, 0 %", "loading the model, 40 %, about 3 s left"),
    ]


def test_a_job_that_says_nothing_and_fails_leaves_nothing_on_standard_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = Error("CONTEXT_LENGTH_EXCEEDED", "too long", retriable=False)
    assert terminal.show_text([Started("j", "m", 1, 1), error]) is error
    assert capsys.readouterr().out == ""
    assert terminal.show_text([Token("frog", 1, [1]), error]) is error
    assert capsys.readouterr().out == "frog\n"
    assert terminal.show_text([END]) is None
    assert capsys.readouterr().out == "\n"


def test_a_table_has_columns_under_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_table(("NAME", "JOBS"), [("a-longer-name", 7), ("", 0)])
    assert capsys.readouterr().out == "NAME           JOBS\na-longer-name  7\n-              0\n"


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "0s"), (59_999, "59s"), (61_000, "1m 1s"), (3_661_000, "1h 1m"), (90_000_000, "1d 1h")],
)
def test_a_duration_has_its_two_largest_units(milliseconds: int, text: str) -> None:
    assert terminal.duration(milliseconds) == text
