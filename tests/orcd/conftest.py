"""What the tests of clients and stores share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import redis

from orcd.store import event_stream, schema
from tests.orcd.answering_worker import AnsweringWorker, FailingWorker
from tests.orcd.job_record import Ears, J
from tests.orcd.job_writer import MakeStore

Background = Callable[..., "Future[Any]"]


@pytest.fixture
def ears(connection: redis.Redis) -> Iterator[Ears]:
    """Hears the events of the job `J`."""
    ears = Ears(connection, schema.events_channel(J))
    yield ears
    ears.close()


@pytest.fixture
def background() -> Iterator[Background]:
    """Runs the worker's part on a thread of its own; its errors fail the test."""
    futures: list[Future[Any]] = []
    with ThreadPoolExecutor(4) as pool:

        def run(function: Callable[..., object], *arguments: object) -> Future[Any]:
            futures.append(pool.submit(function, *arguments))
            return futures[-1]

        yield run
    for future in futures:
        future.result()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the monotonic clock, in a list to be changed."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return clock


@pytest.fixture
def short_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers look at the log after a short silence."""
    monkeypatch.setattr(event_stream, "POLL_S", 0.1)


@pytest.fixture
def worker(connection: redis.Redis, make_store: MakeStore) -> Iterator[AnsweringWorker]:
    """Answers every job with the tokens `` 1 2 3``."""
    worker = AnsweringWorker(connection, make_store)
    yield worker
    worker.stop()


@pytest.fixture
def failing_worker(connection: redis.Redis, make_store: MakeStore) -> Iterator[FailingWorker]:
    """Fails every job after three tokens."""
    worker = FailingWorker(connection, make_store)
    yield worker
    worker.stop()
