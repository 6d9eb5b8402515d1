"""Workers that are told by name to leave: what becomes of their jobs, and of them; real workers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from orcd.client import Client
from orcd.monitoring.worker_registry import Farewell, WorkerRegistry
from tests.conftest import wait_until
from tests.tasks.slow_engine import held_engine, slow_engine
from tests.tasks.worker_process import WorkerProcess, wait_until_running

LONG: dict[str, Any] = {"prompt_token_ids": [9, 8, 7], "max_tokens": 60, "seed": 4, "ignore_eos": True}
SHORT: dict[str, Any] = LONG | {"max_tokens": 10}
LONG_DRAIN_S, LEFT_S = 150, 60.0
"""Where a worker is not to wait for its jobs, and what it may take to leave on a busy machine."""


@pytest.fixture
def registry(redis_url: str) -> Iterator[WorkerRegistry]:
    with redis.Redis.from_url(redis_url) as connection:
        yield WorkerRegistry(connection)


def leave(worker: WorkerProcess, registry: WorkerRegistry, farewell: Farewell) -> float:
    """Tell a worker to leave, which must end well; the seconds that it took."""
    (name,) = [each.name for each in registry.workers() if each.pid == worker.process.pid]
    start = time.monotonic()
    while registry.tell(name, farewell):
        time.sleep(0.05)
    took_s = time.monotonic() - start
    assert worker.process.wait(60) == 0
    assert [event for event in worker.events() if event["level"] != "info"] == []
    assert all(each.name != name for each in registry.workers())
    return took_s


def test_a_drained_worker_finishes_what_it_can_and_another_goes_on_with_the_rest(
    redis_url: str, shallow_chat_model: Path, tmp_path: Path, registry: WorkerRegistry
) -> None:
    variables = slow_engine(tmp_path, 0.05) | {"ORCD_DRAIN_TIMEOUT_S": "4"}
    with (
        held_engine(tmp_path, 2 * SHORT["max_tokens"]),
        WorkerProcess(redis_url, shallow_chat_model, tmp_path, **variables) as worker,
        Client(redis_url) as client,
    ):
        short, *others = client.submit_many([SHORT, *[LONG] * 6])
        wait_until_running(client, [short])
        leave(worker, registry, "drain")
        assert client.status(short).state == "succeeded"
        assert {status.state for status in client.statuses(others)} == {"queued"}
        with WorkerProcess(redis_url, shallow_chat_model, tmp_path) as second:
            texts = {client.result(job_id, timeout=60).text for job_id in others}
            assert len(texts) == 1
            wait_until(lambda: len(second.events("execute_end")) == len(others))
        assert {status.losses for status in client.statuses(others)} == {0}


def test_a_stopped_worker_gives_back_at_once_and_others_stay(
    redis_url: str, shallow_chat_model: Path, tmp_path: Path, registry: WorkerRegistry
) -> None:
    variables = slow_engine(tmp_path) | {"ORCD_DRAIN_TIMEOUT_S": str(LONG_DRAIN_S), "ORCD_LEASE_MS": "60000"}
    with (
        held_engine(tmp_path),
        WorkerProcess(redis_url, shallow_chat_model, tmp_path, **variables) as worker,
        Client(redis_url) as client,
    ):
        job_ids = client.submit_many([LONG | {"seed": number} for number in range(6)])
        wait_until_running(client, job_ids)
        engine = psutil.Process(worker.engine_pid)
        with WorkerProcess(redis_url, shallow_chat_model, tmp_path) as other:
            assert leave(worker, registry, "stop") < LEFT_S
            assert not engine.is_running(), "its memory is free when it is off the list"
            assert {client.result(job_id, timeout=60).state for job_id in job_ids} == {"succeeded"}
            assert {status.losses for status in client.statuses(job_ids)} == {0}
            assert [each.pid for each in registry.workers()] == [other.process.pid]


@pytest.mark.parametrize("farewell", ["drain", "stop"])
def test_a_worker_that_loads_can_be_sent_away(
    redis_url: str, shallow_chat_model: Path, tmp_path: Path, registry: WorkerRegistry, farewell: Farewell
) -> None:
    worker = WorkerProcess(redis_url, shallow_chat_model, tmp_path)
    wait_until(registry.workers)
    (name,) = [each.name for each in registry.workers()]
    while registry.tell(name, farewell):
        time.sleep(0.01)
    assert worker.process.wait(60) == 0
