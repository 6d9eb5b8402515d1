"""F02: a Redis that is full, read-only, loading ... or that drops connections ends no worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from orcd.client import Client
from orcd.errors import RedisUnavailable
from tasks.local.redis_server import RedisServer
from tests.conftest import wait_until
from tests.tasks.celery_ext.redis_faults import FAULTS, SECONDS, SHORT, LoadingServer, assert_outlived, staged
from tests.tasks.worker_process import WorkerProcess


@pytest.fixture(scope="module")
def worker(shallow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """One worker, which outlives all faults here, on a server of its own."""
    with RedisServer() as server, WorkerProcess(server.url, shallow_model, tmp_path_factory.mktemp("faults")) as worker:
        yield worker


@pytest.mark.parametrize("name", FAULTS)
def test_a_worker_without_jobs_outlives_what_redis_refuses(worker: WorkerProcess, name: str) -> None:
    num_said = len(worker.events("celery"))
    with closing(redis.Redis.from_url(worker.redis_url)) as connection, staged(FAULTS[name], connection):
        time.sleep(SECONDS)
    assert_outlived(worker)
    said = [event["message"] for event in worker.events("celery")[num_said:]]
    assert set(said) <= {"Redis is away or refuses commands; waiting for it", "Redis is back"}
    assert len(said) <= 2 or name == "connections-cut"  # it is away as often


def _is_submitted(client: Client) -> bool:
    try:
        return bool(client.submit(**SHORT, job_id="loaded"))
    except RedisUnavailable:
        return False


def test_a_worker_waits_for_a_redis_that_loads_its_data(shallow_model: Path, tmp_path: Path) -> None:
    with LoadingServer() as server, WorkerProcess(server.url, shallow_model, tmp_path) as worker:
        with closing(redis.Redis.from_url(server.url)) as connection, connection.pipeline() as pipeline:
            for number in range(server.NUM_KEYS):
                pipeline.set(f"key-{number}", "x")
            pipeline.execute()
        server.kill()
        server.start()
        with closing(redis.Redis.from_url(server.url)) as connection, pytest.raises(redis.BusyLoadingError):
            connection.get("key-1")
        worker.wait_for("celery")
        server.hurry()
        with Client(server.url) as client:
            wait_until(lambda: _is_submitted(client))
            assert client.result("loaded", timeout=60).state == "succeeded"
        assert worker.process.poll() is None
