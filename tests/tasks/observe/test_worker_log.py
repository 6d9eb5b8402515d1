"""Log events: what they hold, how often they come, and that they hold no text."""

from __future__ import annotations

import pytest
import redis
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from kombu.exceptions import OperationalError

from orcd.errors import InvalidRequest
from tests.tasks.dispatch.byte_model import READY
from tests.tasks.observe.watched import CANARY, Watched
from worker import contract


def test_a_load_is_told_from_start_to_ready(watched: Watched) -> None:
    observer = watched.observer
    observer.log.startup("cpu")
    for percent in (0, 25, 50, 75, 100):
        observer.log.load_progress(contract.Load(percent, percent * 10, 1000, 40 * (100 - percent)))
    assert not observer.is_ready
    observer.ready(READY)
    assert observer.is_ready
    observer.log.shutdown()
    events = watched.events()
    assert [event["event"] for event in events] == [
        *("startup", "model_load_start"),
        *["model_load_progress"] * 5,
        *("model_load_complete", "ready", "shutdown"),
    ]
    assert events[3] == {
        "level": "info",
        "event": "model_load_progress",
        "percent": 25,
        "bytes": 250,
        "total_bytes": 1000,
        "remaining_ms": 3000,
    }
    complete, ready = events[7:9]
    assert (complete["load_ms"], complete["memory_bytes"], complete["device"]) == (12, 4096, "cpu")
    assert (ready["engine_pid"], ready["max_sequence_tokens"]) == (4321, 64)


@hypothesis_settings(max_examples=50)
@given(percents=st.lists(st.integers(0, 99), max_size=100).map(sorted))
def test_progress_is_logged_every_ten_percent_and_always_at_the_end(percents: list[int]) -> None:
    watched = Watched()
    for percent in [*percents, 100]:
        watched.observer.log.load_progress(contract.Load(percent, percent, 100))
    logged = [event["percent"] for event in watched.events()]
    assert logged[-1] == 100
    assert len(logged) <= 11
    assert {percent // 10 for percent in percents} <= {percent // 10 for percent in logged}


def test_an_error_of_the_worker_is_told_with_code_and_message(watched: Watched) -> None:
    watched.observer.log.error(InvalidRequest("ORCD_DEVICE must be\ncpu or cuda:N"))
    (event,) = watched.events()
    assert (event["level"], event["code"], event["message"]) == (
        "error",
        "INVALID_REQUEST",
        "ORCD_DEVICE must be cpu or cuda:N",
    )


def test_what_is_tried_again_and_again_is_told_once_and_without_the_errors_text(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(100):
        watched.observer.log.retrying("append", ConnectionError(CANARY))
    watched.observer.log.retrying("reap", TimeoutError(CANARY))
    assert CANARY not in watched.text
    events = watched.events()
    assert [(event["doing"], event["cause"]) for event in events] == [
        ("append", "ConnectionError"),
        ("reap", "TimeoutError"),
    ]
    assert {event["level"] for event in events} == {"warning"}
    monkeypatch.setattr("tasks.observe.worker_log.RETRY_EVERY_S", 0.0)
    watched.observer.log.retrying("append", ConnectionError())
    assert len(watched.events()) == 1


def test_a_redis_that_is_away_or_refuses_is_no_fault_of_ours(watched: Watched) -> None:
    log = watched.observer.log
    log.retrying("append", redis.ResponseError(f"user_script: OOM command not allowed when used memory > {CANARY}"))
    wrapped = OperationalError(CANARY)
    wrapped.__cause__ = redis.ConnectionError(CANARY)
    log.unannounced(3, wrapped)
    log.retrying("health", OSError(CANARY))
    assert CANARY not in watched.text
    full, away, ours = watched.events()
    assert full["message"] == "Redis at redis://127.0.0.1:6379/0 is full; raise its maxmemory"
    assert (full["code"], full["cause"], full["doing"]) == ("REDIS_UNAVAILABLE", "ResponseError", "append")
    assert away["message"] == "cannot reach Redis at redis://127.0.0.1:6379/0; start it or set ORCD_REDIS_URL"
    assert (away["code"], away["cause"], away["jobs"]) == ("REDIS_UNAVAILABLE", "OperationalError", 3)
    assert (ours["code"], ours["cause"]) == ("INTERNAL", "OSError")
    assert "message" not in ours


def test_what_is_refused_is_told_by_its_id_where_that_may_be_shown(watched: Watched) -> None:
    for task_id in ("job-1", CANARY + " and a space"):
        watched.observer.log.refused(task_id, InvalidRequest(CANARY))
    first, second = watched.events()
    assert (first["job_id"], first["code"]) == ("job-1", "INVALID_REQUEST")
    assert CANARY not in repr((first, second))
