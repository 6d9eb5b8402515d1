"""The events of many jobs reach their logs in one call, however long Redis is away."""

from __future__ import annotations

import io
import json
import threading
import time

import pytest
import redis

from orcd.events import Started, Token
from orcd.request import parse
from orcd.store.claim import Claim
from orcd.store.job_store import Append, Appended, JobStore
from tasks.dispatch.active_job import ActiveJob
from tasks.dispatch.log_writer import LogWriter
from tasks.observe.observer import Observer
from tests.orcd.job_record import submit
from tests.tasks.dispatch.byte_model import ENCODER, READY
from worker import contract
from worker.log import EventLog
from worker.settings import Settings

REQUEST = parse({"prompt": "old pond"})


def begin(store: JobStore, job_id: str) -> ActiveJob:
    """Submit and claim a job."""
    submit(store, job_id, REQUEST)
    claim = store.claim([job_id])[0]
    assert isinstance(claim, Claim)
    return ActiveJob(claim, ENCODER.encode(REQUEST, READY), READY, lambda outcome: None)


def draw(job: ActiveJob, text: bytes) -> None:
    job.process(contract.TokenOutput(job.request_id, 0, tuple(text)))


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def stopping() -> threading.Event:
    return threading.Event()


@pytest.fixture
def writer(store: JobStore, log: io.StringIO, stopping: threading.Event) -> LogWriter:
    return LogWriter(store, Observer(EventLog("json", "w", log), "w", Settings(name="demo", device="cpu")), stopping)


def test_all_jobs_are_written_in_one_call_and_those_with_nothing_to_say_are_left_out(
    store: JobStore, writer: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    append = store.append

    def counted(appends: list[Append]) -> list[Appended]:
        calls.append([each.job_id for each in appends])
        return append(appends)

    monkeypatch.setattr(store, "append", counted)
    jobs = [begin(store, job_id) for job_id in ("a", "b", "c")]
    assert [(job.job_id, answer.status) for job, answer in writer.append(jobs)] == [
        ("a", "appended"),
        ("b", "appended"),
        ("c", "appended"),
    ]
    for job in jobs:
        job.add()
    draw(jobs[1], b"frog")
    assert [job.job_id for job, _ in writer.append(jobs)] == ["b"]
    assert calls == [["a", "b", "c"], ["b"]]
    assert [type(event) for event in store.events("b")] == [Started, Token]


def test_a_job_that_is_given_twice_is_written_once(store: JobStore, writer: LogWriter) -> None:
    job = begin(store, "a")
    assert len(writer.append([job, job])) == 1


def test_what_redis_does_not_take_is_kept_until_it_does(
    store: JobStore, writer: LogWriter, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, failures = store.append, iter([redis.ConnectionError("away"), redis.TimeoutError("slow")])

    def fails_twice(appends: list[Append]) -> list[Appended]:
        for error in failures:
            raise error
        return append(appends)

    monkeypatch.setattr(store, "append", fails_twice)
    ((_, answer),) = writer.append([begin(store, "a")])
    assert answer.status == "appended"
    assert [type(event) for event in store.events("a")] == [Started]
    (retrying,) = map(json.loads, log.getvalue().splitlines())
    assert (retrying["doing"], retrying["cause"]) == ("append", "ConnectionError")


def test_a_worker_that_stops_does_not_wait_for_redis(
    store: JobStore, writer: LogWriter, stopping: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_appends: list[Append]) -> list[Appended]:
        raise redis.ConnectionError("away")

    job = begin(store, "a")
    monkeypatch.setattr(store, "append", fail)
    threading.Timer(0.1, stopping.set).start()
    start = time.monotonic()
    assert writer.append([job]) == []
    assert time.monotonic() - start < 10
