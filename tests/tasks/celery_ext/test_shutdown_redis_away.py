"""A worker that is told to leave while Redis does not answer; real workers."""

from __future__ import annotations

import signal
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import redis

from orcd.client import Client
from tasks.local.redis_server import RedisServer
from tests.tasks.celery_ext.test_shutdown import LONG, SlowWorker
from tests.tasks.dispatch.test_dispatcher import Streams
from tests.tasks.worker_process import WorkerProcess


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_a_worker_leaves_in_time_also_with_redis_away_and_its_jobs_go_on(
    redis_server: RedisServer, shallow_model: Path, tmp_path: Path, fault: str
) -> None:
    with Client(redis_server.url) as client, SlowWorker(redis_server.url, shallow_model, tmp_path) as worker:
        expected = client.result(client.submit(**LONG), timeout=60)
        job_id = worker.begin_and_stop(client)
        with closing(redis.Redis.from_url(redis_server.url)) as connection:
            server = psutil.Process(connection.info("server")["process_id"])
        redis_server.kill() if fault == "killed" else server.suspend()
        worker.leave([signal.SIGTERM])
        assert [event for event in worker.complaints() if event["level"] == "error"] == []
        redis_server.start() if fault == "killed" else server.resume()
        with WorkerProcess(redis_server.url, shallow_model, tmp_path):
            streams = Streams(redis_server.url, [job_id])
            (result,) = streams.results()
        assert (result.state, result.text) == ("succeeded", expected.text)
