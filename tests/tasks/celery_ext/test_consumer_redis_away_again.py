"""F01: a Redis that goes away again and again, or for good, ends no worker and leaves nothing behind in it."""

from __future__ import annotations

import random
import time
from contextlib import closing
from pathlib import Path

import redis

from orcd.client import Client
from tasks.local.redis_server import RedisServer
from tests.conftest import wait_until
from tests.tasks.celery_ext.redis_faults import SHORT
from tests.tasks.worker_process import WorkerProcess


def test_redis_may_go_away_again_and_again(redis_server: RedisServer, shallow_model: Path, tmp_path: Path) -> None:
    chance = random.Random(1)
    with WorkerProcess(redis_server.url, shallow_model, tmp_path, by_celery=True) as worker:  # with mingle and gossip
        job_ids = []
        for _ in range(8):
            with Client(redis_server.url) as client:
                job_ids += client.submit_many([SHORT | {"max_tokens": 30}] * 3)
            time.sleep(chance.uniform(0, 0.6))
            redis_server.kill()
            time.sleep(chance.uniform(0, 0.6))
            redis_server.start()
        with Client(redis_server.url) as client:
            results = [client.result(job_id, timeout=60) for job_id in job_ids]
        assert {result.state for result in results} == {"succeeded"}
        assert len({tuple(result.choices[0].token_ids) for result in results}) == 1
        assert worker.process.poll() is None


def test_a_worker_can_be_stopped_while_redis_is_away(
    redis_server: RedisServer, shallow_model: Path, tmp_path: Path
) -> None:
    with WorkerProcess(redis_server.url, shallow_model, tmp_path) as worker:
        with Client(redis_server.url) as client:  # it has begun to take messages when it has run a job
            assert client.result(client.submit(**SHORT), timeout=60).state == "succeeded"
        redis_server.kill()
        worker.wait_for("celery")
        worker.process.terminate()
        assert worker.process.wait(60) == 0


def test_nothing_is_left_of_a_connection_that_was_lost(
    redis_server: RedisServer, shallow_model: Path, tmp_path: Path
) -> None:
    with (
        WorkerProcess(redis_server.url, shallow_model, tmp_path) as worker,
        closing(redis.Redis.from_url(redis_server.url)) as connection,
    ):
        num_connections = []
        for _ in range(4):
            redis_server.kill()
            time.sleep(0.3)
            redis_server.start()
            with Client(redis_server.url) as client:
                assert client.result(client.submit(**SHORT), timeout=60).state == "succeeded"
            if len(num_connections) < 3:
                time.sleep(2)
                num_connections.append(len(connection.client_list()))
        wait_until(lambda: len(connection.client_list()) <= max(num_connections[:2]) + 1)
        assert connection.hgetall("unacked") == {}
        wait_until(lambda: connection.zcard("orcd:receivers") == 0 or connection.keys("orcd:unacked:*") == [])
        assert worker.process.poll() is None
