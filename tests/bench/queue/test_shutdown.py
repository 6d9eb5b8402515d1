"""A small run of the benchmark, with real workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.queue import shutdown
from tests.bench.queue.shutdown import Outcome, main, measure


def test_a_job_goes_on_with_another_worker_with_the_same_text(shallow_model: Path) -> None:
    outcome = measure("SIGQUIT", shallow_model, drain_timeout_s=1)
    assert outcome.is_kept, outcome
    assert 0 < outcome.longest_gap_s < 10


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome("SIGTERM", 20.3, 0, 0.4, is_same=True, losses=0), 0),
        (Outcome("SIGTERM", 20.3, 1, 0.4, is_same=True, losses=0), 1),
        (Outcome("SIGTERM", 20.3, 0, 0.4, is_same=False, losses=0), 1),
        (Outcome("SIGTERM", 20.3, 0, 0.4, is_same=True, losses=1), 1),
    ],
)
def test_the_exit_code_says_whether_all_was_as_promised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], outcome: Outcome, code: int
) -> None:
    monkeypatch.setattr(shutdown, "measure", lambda *_: outcome)
    assert main([]) == code
    assert "| SIGTERM | 20.3 s |" in capsys.readouterr().out
