"""F01: a Redis that goes away and comes back ends no worker and no job."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from orcd.client import Client
from tasks.local.redis_server import RedisServer
from tests.tasks.slow_engine import slow_engine
from tests.tasks.worker_process import WorkerProcess, wait_until_running

LONG = {"prompt": "old pond", "max_tokens": 60, "ignore_eos": True, "temperature": 0.0}
SHORT = LONG | {"max_tokens": 4}


def _result(client: Client, fields: dict[str, Any]) -> Any:
    return client.result(client.submit(**fields), timeout=60)


def _assert_said_once(worker: WorkerProcess, times: int = 1) -> None:
    said = [event["message"] for event in worker.events("celery")]
    assert said.count("Redis is away or refuses commands; waiting for it") == times, said
    assert said.count("Redis is back") == times, said
    assert not any("%" in message for message in said)


@pytest.mark.parametrize("seconds", [0.5, 3, 20])
def test_a_job_goes_on_after_redis_was_away(
    redis_server: RedisServer, shallow_model: Path, tmp_path: Path, seconds: float
) -> None:
    with WorkerProcess(redis_server.url, shallow_model, tmp_path, **slow_engine(tmp_path)) as worker:
        with Client(redis_server.url) as client:
            expected = _result(client, LONG)
            job_id = client.submit(**LONG)
            wait_until_running(client, [job_id], 3)
            redis_server.kill()
        time.sleep(seconds)
        redis_server.start()
        with Client(redis_server.url) as client:
            assert _result(client, SHORT).state == "succeeded"
            assert client.result(job_id, timeout=60).choices == expected.choices
        assert worker.process.poll() is None
        _assert_said_once(worker)
