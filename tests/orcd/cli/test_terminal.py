"""What a person sees on the terminal while a job waits and runs."""

from __future__ import annotations

import pytest

from orcd.cli import terminal
from orcd.events import End, Loading, Queued, Started, Token

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
