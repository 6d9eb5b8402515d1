"""Statuses, read from what Redis answers."""

from __future__ import annotations

import pytest

from orcd.errors import InvalidRequest
from orcd.status import FIELDS, Status, WorkerStatus

QUEUED = {"state": b"queued", "attempt": b"0", "priority": b"5", "created_ms": b"1000"}
RUNNING = {**QUEUED, "state": b"running", "attempt": b"2", "owner": b"w", "model": b"m", "started_ms": b"1500"}


def read(record: dict[str, bytes], rank: int | None = None, last_entry: bytes | None = None) -> Status:
    return Status.read("j", [record.get(name) for name in FIELDS], rank, [(last_entry, {})] if last_entry else [])


def test_a_queued_job_has_a_place_from_one():
    assert read(QUEUED, rank=4) == Status("j", "queued", 5, 0, None, None, 5, False, 0, 1000, None, None)


def test_a_place_left_over_from_before_the_claim_is_not_shown():
    assert read(RUNNING, rank=4).position is None


def test_a_running_job_has_a_worker_and_tokens():
    assert read(RUNNING, last_entry=b"17-2") == Status(
        "j", "running", None, 2, "w", "m", 5, False, 17, 1000, 1500, None
    )


def test_a_job_that_waits_again_has_no_worker():
    assert read({**RUNNING, "state": b"queued", "owner": b""}).worker is None


def test_a_wish_to_cancel_shows():
    assert read({**RUNNING, "cancel": b"1"}).cancelling


def test_no_record_is_an_unknown_job():
    with pytest.raises(InvalidRequest, match="job j: unknown"):
        read({})


def test_a_worker_without_a_heartbeat_is_left_out():
    seen = [(b"alive", 5.0), (b"dead", 1.0)]
    assert WorkerStatus.read_all(seen, [{b"running": b"3"}, {}]) == [WorkerStatus("alive", 5, {"running": "3"})]
