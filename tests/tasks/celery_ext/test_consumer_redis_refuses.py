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
from orcd.result import Result
from tasks.local.redis_server import RedisServer
from tests.tasks.celery_ext.redis_faults import FAULTS, SECONDS, LoadingServer, staged
from tests.tasks.worker_process import WorkerProcess, wait_until_running

LONG = {"prompt": "old pond", "max_tokens": 450, "ignore_eos": True, "temperature": 0.0}
SHORT = LONG | {"max_tokens": 4}


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A server for all faults here."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def worker(server: RedisServer, demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """One worker, which outlives all of them."""
    with WorkerProcess(server.url, demo_model, tmp_path_factory.mktemp("faults")) as worker:
        yield worker


@pytest.fixture(scope="module")
def undisturbed(worker: WorkerProcess) -> Result:
    """What the long job gives when nothing happens to it."""
    with Client(worker.redis_url) as client:
        return client.result(client.submit(**LONG), timeout=60)


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("is_busy", [True, False], ids=["busy", "idle"])
def test_a_worker_outlives_what_redis_refuses(
    server: RedisServer, worker: WorkerProcess, undisturbed: Result, name: str, is_busy: bool
) -> None:
    with Client(server.url) as client, closing(redis.Redis.from_url(server.url)) as connection:
        job_ids = client.submit_many([LONG] * 2) if is_busy else []
        wait_until_running(client, job_ids, 3)
        with staged(FAULTS[name], connection):
            time.sleep(SECONDS)
        assert worker.process.poll() is None, worker.events("celery")
        back = time.monotonic()
        assert client.result(client.submit(**SHORT), timeout=60).state == "succeeded"
        assert time.monotonic() - back < 15
        for job_id in job_ids:
            assert client.result(job_id, timeout=60).choices == undisturbed.choices
        assert worker.process.poll() is None, worker.events("celery")


def test_a_worker_waits_for_a_redis_that_loads_its_data(demo_model: Path, tmp_path: Path) -> None:
    with LoadingServer() as server, WorkerProcess(server.url, demo_model, tmp_path) as worker:
        with closing(redis.Redis.from_url(server.url)) as connection, connection.pipeline() as pipeline:
            for number in range(server.NUM_KEYS):
                pipeline.set(f"key-{number}", "x")
            pipeline.execute()
        server.kill()
        server.start()
        with closing(redis.Redis.from_url(server.url)) as connection, pytest.raises(redis.BusyLoadingError):
            connection.get("key-1")
        with Client(server.url) as client:
            deadline = time.monotonic() + 30
            while True:
                try:
                    job_id = client.submit(**SHORT)
                    break
                except RedisUnavailable:
                    assert time.monotonic() < deadline
            assert client.result(job_id, timeout=30).state == "succeeded"
        assert worker.process.poll() is None
