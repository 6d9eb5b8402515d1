"""F01: a Redis that comes back without its data ends no worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from orcd.client import Client
from tasks.local.redis_server import RedisServer
from tests.tasks.celery_ext.redis_faults import SHORT
from tests.tasks.slow_engine import slow_engine
from tests.tasks.worker_process import WorkerProcess, wait_until_running

LONG = SHORT | {"max_tokens": 60}


@pytest.fixture
def forgetful_server() -> Iterator[RedisServer]:
    """A server without any persistence."""
    with RedisServer() as server:
        yield server


@pytest.mark.parametrize("seconds", [0.5, 3])
def test_a_worker_goes_on_after_redis_has_lost_its_data(
    forgetful_server: RedisServer, shallow_model: Path, tmp_path: Path, seconds: float
) -> None:
    with WorkerProcess(forgetful_server.url, shallow_model, tmp_path, **slow_engine(tmp_path)) as worker:
        with Client(forgetful_server.url) as client:
            wait_until_running(client, [client.submit(**LONG), client.submit(**LONG)], 3)
            forgetful_server.kill()
        time.sleep(seconds)
        forgetful_server.start()
        with Client(forgetful_server.url) as client:
            assert client.result(client.submit(**SHORT), timeout=60).state == "succeeded"
        assert worker.process.poll() is None


def test_a_worker_goes_on_after_the_scripts_were_flushed(
    forgetful_server: RedisServer, shallow_model: Path, tmp_path: Path
) -> None:
    with (
        WorkerProcess(forgetful_server.url, shallow_model, tmp_path) as worker,
        Client(forgetful_server.url) as client,
        redis.Redis.from_url(forgetful_server.url) as connection,
    ):
        for _ in range(3):
            assert client.result(client.submit(**SHORT), timeout=60).state == "succeeded"
            connection.script_flush()
        assert worker.process.poll() is None
        worker.wait_for("execute_end", 3)  # a worker logs an end after it has told it
        assert worker.events("error") == [], worker.events()
