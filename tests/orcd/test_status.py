"""Statuses, read from what Redis answers."""

from __future__ import annotations

import pytest

from orcd.errors import InvalidRequest, LogDamaged
from orcd.events import End, encode_event
from orcd.status import FIELDS, Look, Status, WorkerStatus

NOW_MS = 10_000
QUEUED = {"state": b"queued", "attempt": b"0", "priority": b"5", "created_ms": b"1000"}
RUNNING = {**QUEUED, "state": b"running", "attempt": b"2", "owner": b"w", "model": b"m", "started_ms": b"1500"}


def read(record: dict[str, bytes], rank: int = -1, last_entry: bytes | None = None, *, served: int = 1) -> Status:
    look = Look.read("j", [record.get("state", b""), rank, served, b"", b""])
    entries = [(last_entry, {})] if last_entry else []
    return Status.read("j", look, [record.get(name) for name in FIELDS], entries, NOW_MS)


def test_a_queued_job_has_a_place_from_one():
    assert read(QUEUED, rank=4) == Status(
        "j", "queued", 5, 0, None, None, 5, False, 0, 1000, None, None, as_of_ms=NOW_MS
    )


def test_a_place_left_over_from_before_the_claim_is_not_shown():
    assert read(RUNNING, rank=4).position is None


def test_a_running_job_has_a_worker_and_tokens():
    assert read(RUNNING, last_entry=b"17-2") == Status(
        "j", "running", None, 2, "w", "m", 5, False, 17, 1000, 1500, None, as_of_ms=NOW_MS
    )


def test_a_job_that_waits_again_has_no_worker():
    assert read({**RUNNING, "state": b"queued", "owner": b""}).worker is None


def test_a_wish_to_cancel_shows():
    assert read({**RUNNING, "cancel": b"1"}).cancelling


def test_no_record_is_an_unknown_job():
    with pytest.raises(InvalidRequest, match="job j: unknown"):
        read({})


def test_a_queued_job_says_whether_a_worker_serves_its_model():
    assert not read(QUEUED, rank=0, served=0).served
    assert read(QUEUED, rank=0).served
    assert read(RUNNING, served=0).served


def test_a_record_of_a_newer_version_is_refused_in_words():
    with pytest.raises(InvalidRequest, match="job j: a newer version of orcd wrote it; upgrade this one"):
        Look.read("j", [b"newer", -1, 1, b"", b""])


@pytest.mark.parametrize("record", [{"state": b"queued"}, {**QUEUED, "attempt": b"many"}])
def test_a_record_that_cannot_be_read_is_damaged(record: dict[str, bytes]):
    """F14: one job's damage is that job's error."""
    with pytest.raises(LogDamaged, match="job j: "):
        read(record)
    with pytest.raises(LogDamaged, match="job j: "):
        Look.read("j", [b"damaged", -1, 1, b"", b""])
    with pytest.raises(LogDamaged, match="job j: "):
        Status.read("j", Look("queued", 0, True, b""), None, None)


def test_a_log_that_cannot_be_used_counts_as_empty():
    values = [RUNNING.get(name) for name in FIELDS]
    assert Status.read("j", Look("running", None, True, b""), values, None).tokens_out == 0


ERROR = b'{"type":"error","code":"POISONED","message":"given up","retriable":false}'
END = b'{"type":"end","finish_reason":"stop","tokens_in":1,"tokens_out":1,"queue_ms":0,"ttft_ms":0,"decode_ms":0}'


def test_a_job_says_how_often_it_lost_its_owner():
    assert (read(QUEUED).losses, read({**RUNNING, "losses": b"3"}).losses) == (0, 3)


@pytest.mark.parametrize(
    ("in_record", "in_log", "code"),
    [(ERROR, b"", "POISONED"), (b"", ERROR, "POISONED"), (END, b"", None), (b"", END, None), (b"{", b"", None)],
)
def test_a_job_that_failed_says_why(in_record: bytes, in_log: bytes, code: str | None):
    """Version 1 had the terminal event in the log only."""
    record = {**RUNNING, "state": b"failed", "finished_ms": b"9"}
    values = [record.get(name) for name in FIELDS]
    status = Status.read("j", Look("failed", None, True, in_record), values, [(b"1-1", {b"e": in_log})])
    assert (status.error and status.error.code) == code


def test_workers_are_read_by_name_and_one_that_cannot_be_read_is_left_out():
    heartbeat = [b"state", b"ready", b"running", b"3", b"tokens_per_s", b"9.5", b"of a newer version", b"x"]
    answer = [
        1500,
        [b"b", b"1000", heartbeat],
        [b"bad", b"1000", [b"pid", b"none"]],
        [b"a", b"1600", [b"host", b"\xff"]],
    ]
    assert WorkerStatus.read_all(answer) == [
        WorkerStatus("a", 1600, 0, host="\ufffd"),
        WorkerStatus("b", 1000, 500, state="ready", running=3, tokens_per_s=9.5),
    ]


def test_the_rate_is_that_of_the_tokens_after_the_first_up_to_now_or_the_end():
    begun = {**RUNNING, "first_token_ms": b"2000"}
    assert read(begun, last_entry=b"17-0").tokens_per_s == 2.0
    assert read({**begun, "state": b"succeeded", "finished_ms": b"4000"}, last_entry=b"17-0").tokens_per_s == 8.0
    assert read(begun, last_entry=b"1-0").tokens_per_s is None
    assert read({**begun, "state": b"queued"}, last_entry=b"17-0").tokens_per_s is None
    assert read(begun, last_entry=b"17-0").first_token_ms == 2000


@pytest.mark.parametrize(("queue", "model"), [(b"orcd", None), (b"orcd.a%3Ab", "a:b"), (b"celery", None)])
def test_the_model_that_a_job_asks_for_is_told(queue: bytes, model: str | None):
    assert read({**QUEUED, "queue": queue}).asked_model == model


def test_what_a_job_came_to_is_told():
    end = End("stop", 3, 4, 1, 2, 3, "0" * 64)
    look = Look("succeeded", None, True, encode_event(end))
    values = [{**RUNNING, "state": b"succeeded"}.get(name) for name in FIELDS]
    assert Status.read("j", look, values, []).end == end
