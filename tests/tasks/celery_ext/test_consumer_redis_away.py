"""F01: a Redis that goes away and comes back, also without its data, never ends a worker."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from orcd.client import Client
from tasks.local.redis_server import RedisServer
from tests.tasks.worker_process import WorkerProcess, wait_until_running

LONG = {"prompt": "old pond", "max_tokens": 450, "ignore_eos": True, "temperature": 0.0}
SHORT = LONG | {"max_tokens": 4}


@pytest.fixture
def forgetful_server() -> Iterator[RedisServer]:
    """A server without any persistence."""
    with RedisServer() as server:
        yield server


def _result(client: Client, fields: dict[str, Any]) -> Any:
    return client.result(client.submit(**fields), timeout=60)


def _assert_said_once(worker: WorkerProcess, times: int = 1) -> None:
    said = [event["message"] for event in worker.events("celery")]
    assert said.count("Redis is away or refuses commands; waiting for it") == times, said
    assert said.count("Redis is back") == times, said
    assert not any("%" in message for message in said)


@pytest.mark.parametrize("seconds", [0.5, 3, 20])
def test_a_job_goes_on_after_redis_was_away(
    redis_server: RedisServer, demo_model: Path, tmp_path: Path, seconds: float
) -> None:
    with WorkerProcess(redis_server.url, demo_model, tmp_path) as worker:
        with Client(redis_server.url) as client:
            expected = _result(client, LONG)
            job_id = client.submit(**LONG)
            wait_until_running(client, [job_id], 3)
            redis_server.kill()
        time.sleep(seconds)
        redis_server.start()
        with Client(redis_server.url) as client:
            back = time.monotonic()
            assert _result(client, SHORT).state == "succeeded"
            assert time.monotonic() - back < 6, "a worker is there soon after Redis is"
            assert client.result(job_id, timeout=60).choices == expected.choices
        assert worker.process.poll() is None
        _assert_said_once(worker)


@pytest.mark.parametrize("seconds", [0.5, 3])
def test_a_worker_goes_on_after_redis_has_lost_its_data(
    forgetful_server: RedisServer, demo_model: Path, tmp_path: Path, seconds: float
) -> None:
    with WorkerProcess(forgetful_server.url, demo_model, tmp_path) as worker:
        with Client(forgetful_server.url) as client:
            wait_until_running(client, [client.submit(**LONG), client.submit(**LONG)], 3)
            forgetful_server.kill()
        time.sleep(seconds)
        forgetful_server.start()
        with Client(forgetful_server.url) as client:
            assert _result(client, SHORT).state == "succeeded"
        assert worker.process.poll() is None


def test_redis_may_go_away_again_and_again(redis_server: RedisServer, demo_model: Path, tmp_path: Path) -> None:
    chance = random.Random(1)
    with WorkerProcess(redis_server.url, demo_model, tmp_path, flags=()) as worker:  # with mingle and gossip
        job_ids = []
        for _ in range(8):
            with Client(redis_server.url) as client:
                job_ids += client.submit_many([LONG | {"max_tokens": 30}] * 3)
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
    redis_server: RedisServer, demo_model: Path, tmp_path: Path
) -> None:
    with WorkerProcess(redis_server.url, demo_model, tmp_path) as worker:
        with Client(redis_server.url) as client:  # it has begun to take messages when it has run a job
            assert client.result(client.submit(prompt="old pond", max_tokens=1), timeout=60).state == "succeeded"
        redis_server.kill()
        worker.wait_for("celery")
        worker.process.terminate()
        assert worker.process.wait(20) == 0


def test_nothing_is_left_of_a_connection_that_was_lost(
    redis_server: RedisServer, demo_model: Path, tmp_path: Path
) -> None:
    with (
        WorkerProcess(redis_server.url, demo_model, tmp_path) as worker,
        closing(redis.Redis.from_url(redis_server.url)) as connection,
    ):
        num_connections = []
        for _ in range(4):
            redis_server.kill()
            time.sleep(0.3)
            redis_server.start()
            with Client(redis_server.url) as client:
                assert _result(client, SHORT).state == "succeeded"
            time.sleep(2)
            num_connections.append(len(connection.client_list()))
        assert max(num_connections) <= num_connections[0] + 1
        assert connection.hgetall("unacked") == {}
        assert connection.zrange("orcd:receivers", 0, -1) == [] or connection.keys("orcd:unacked:*") == []
        assert worker.process.poll() is None
