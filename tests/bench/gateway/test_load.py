import re
from pathlib import Path

import pytest

from tests.bench.gateway import load


def test_a_small_load_is_measured_and_no_stream_loses_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shallow_model: Path
) -> None:
    monkeypatch.setattr(load, "DEMO_MODEL", shallow_model)
    monkeypatch.setattr(load, "NUM_EVENTS", 3)  # one a second
    monkeypatch.setattr(load, "SLOW_EVENTS", 200)
    assert load.main(["--requests=3", "--seconds=1", "--streams=20"]) == 0
    out = capsys.readouterr().out
    assert "| streams open at once | 20 |" in out
    assert "| whole | 20 |" in out
    assert re.search(r"\| beside 5 callers who read nothing of 3 MB each, p50 / p99 ms \| \d", out)
    assert re.search(r"\| requests a second by the gateway, 16 callers \| [1-9]", out)
