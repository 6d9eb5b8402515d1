"""What the benchmark says of what it saw; `tests/tasks/dispatch/test_dispatcher_order.py` runs two real workers."""

from __future__ import annotations

import pytest

from tests.bench.queue import second_worker
from tests.bench.queue.second_worker import Outcome, main


@pytest.mark.parametrize(("num_succeeded", "num_second", "code"), [(200, 60, 0), (200, 59, 1), (199, 90, 1)])
def test_the_exit_code_says_whether_the_second_worker_got_its_share(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], num_succeeded: int, num_second: int, code: int
) -> None:
    outcome = Outcome(200, num_succeeded, 150, num_second, 5.0, 0.1)
    monkeypatch.setattr(second_worker, "measure", lambda *_: outcome)
    assert main([]) == code
    assert f"it ran {num_second} of them" in capsys.readouterr().out
