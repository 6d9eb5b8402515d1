"""F02: jobs that run while Redis is full, read-only ... or drops connections are what they would have been."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from orcd.client import Client
from orcd.result import Result
from tasks.local.redis_server import RedisServer
from tests.tasks.celery_ext.redis_faults import FAULTS, SECONDS, SHORT, assert_outlived, staged
from tests.tasks.slow_engine import slow_engine
from tests.tasks.worker_process import WorkerProcess, wait_until_running

STEP_S = 0.05
LONG = SHORT | {"max_tokens": int(SECONDS / STEP_S) + 5}
"""It runs when a fault begins, and also when it ends."""


@pytest.fixture(scope="module")
def worker(shallow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """One worker, which outlives all faults here, on a server of its own."""
    folder = tmp_path_factory.mktemp("faults")
    variables = slow_engine(folder, STEP_S)
    with RedisServer() as server, WorkerProcess(server.url, shallow_model, folder, **variables) as worker:
        yield worker


@pytest.fixture(scope="module")
def undisturbed(worker: WorkerProcess) -> Result:
    """What the long job gives when nothing happens to it."""
    with Client(worker.redis_url) as client:
        return client.result(client.submit(**LONG), timeout=60)


@pytest.mark.parametrize("name", FAULTS)
def test_a_worker_and_its_jobs_outlive_what_redis_refuses(
    worker: WorkerProcess, undisturbed: Result, name: str
) -> None:
    with Client(worker.redis_url) as client, closing(redis.Redis.from_url(worker.redis_url)) as connection:
        job_ids = client.submit_many([LONG] * 2)
        wait_until_running(client, job_ids, 3)
        with staged(FAULTS[name], connection):
            time.sleep(SECONDS)
        assert_outlived(worker)
        for job_id in job_ids:
            assert client.result(job_id, timeout=60).choices == undisturbed.choices
        assert worker.process.poll() is None, worker.events("celery")
