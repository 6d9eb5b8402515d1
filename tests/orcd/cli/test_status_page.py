"""Where a job stands, in words."""

from __future__ import annotations

import msgspec
import pytest

from orcd.cli.status_page import status_page, wait_words
from orcd.events import End, Error
from orcd.status import Status, WaitEstimate

NOW = 1767225600000
WAITS = Status("j", "queued", 3, 0, None, None, 5, False, 0, NOW - 65_000, None, None, reason="waiting for a free slot",
               asked_model="qwen", as_of_ms=NOW)  # fmt: skip
ESTIMATE = WaitEstimate("j", "queued", 12, 90_000, 0.133, "waiting for a free slot", True, ["qwen"], None)
RUNS = Status("j", "running", None, 2, "w", "qwen", 5, False, 17, NOW - 65_000, NOW - 60_000, None, losses=1,
              first_token_ms=NOW - 59_600, tokens_per_s=8.25, as_of_ms=NOW)  # fmt: skip


def page(status: Status, estimate: WaitEstimate | None = None) -> dict[str, str]:
    return dict(status_page(status, estimate))


def test_a_job_that_waits_says_why_and_how_long() -> None:
    assert page(WAITS, ESTIMATE) == {
        "job": "j",
        "state": "queued",
        "model": "qwen",
        "priority": "5 (0 is the most urgent of 0 to 9)",
        "submitted": "2025-12-31 23:58:55 UTC (1m 5s ago)",
        "waits": "waiting for a free slot",
        "ahead": "12 jobs",
        "starts": "in about 1m 30s, at 0.13 jobs a second",
    }


def test_a_job_that_runs_says_how_far_it_is() -> None:
    assert page(msgspec.structs.replace(RUNS, cancelling=True)) == {
        "job": "j",
        "state": "running, to be cancelled",
        "model": "qwen",
        "priority": "5 (0 is the most urgent of 0 to 9)",
        "submitted": "2025-12-31 23:58:55 UTC (1m 5s ago)",
        "started": "2025-12-31 23:59:00 UTC (1m 0s ago), after 5.0 s",
        "worker": "w",
        "attempts": "2",
        "losses": "1 workers died with it since its last token",
        "first_token": "400 ms after the start",
        "tokens": "17 out, 8.25 a second",
    }


def test_a_job_that_ended_says_how() -> None:
    end = End("length", 9, 17, 1, 2, 3, "0" * 64)
    ended = msgspec.structs.replace(RUNS, state="succeeded", finished_ms=NOW - 1000, end=end)
    said = page(ended)
    assert said["finished"] == "2025-12-31 23:59:59 UTC (1s ago), after 59.0 s"
    assert said["tokens"] == "9 in, 17 out, 8.25 a second"
    assert said["outcome"] == "length: the answer is as long as it may be"
    error = Error("VRAM_OOM", "does not fit", True)
    failed = page(msgspec.structs.replace(RUNS, state="failed", finished_ms=NOW, error=error))
    assert failed["error"] == "VRAM_OOM: does not fit"
    assert failed["again"] == "it may succeed if it is submitted again"
    assert "outcome" not in failed


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"served": False}, "once a worker takes such jobs"),
        ({"load_percent": 45}, "once the model is loaded (45 %)"),
        ({"starts_in_ms": None}, "unknown: no worker has ended a job yet"),
        ({"ahead": 0, "starts_in_ms": 0}, "as soon as a slot is free"),
    ],
)
def test_what_is_not_known_is_not_made_up(fields: dict[str, object], words: str) -> None:
    assert wait_words(msgspec.structs.replace(ESTIMATE, **fields)) == words


def test_that_the_last_worker_has_just_left_is_said() -> None:
    gone = msgspec.structs.replace(ESTIMATE, served=False)
    assert page(WAITS, gone)["waits"] == "no worker takes such jobs now"
    unserved = msgspec.structs.replace(WAITS, served=False, reason="no worker serves qwen")
    assert page(unserved, gone)["waits"] == "no worker serves qwen"
