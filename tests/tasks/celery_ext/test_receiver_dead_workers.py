"""F09: messages in the hands of a worker that was killed are delivered again within its lease and two seconds."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from orcd.client import Client
from orcd.store import schema
from orcd.store.enqueue import queue_name
from tasks.app import create_app
from tasks.celery_ext.tasks import GenerateTask
from tests.conftest import wait_until
from tests.tasks.slow_engine import slow_engine
from tests.tasks.worker_process import WorkerProcess
from worker.settings import Settings

LEASE_S = 2.0  # of a `WorkerProcess`
SLACK_S = 60.0
"""Two seconds are enough, but on a busy machine; Celery's own transport would take an hour."""
FIELDS = {"prompt": "old pond", "max_tokens": 4, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    """A foreign producer's app."""
    with closing(create_app(Settings(redis_url=redis_url))) as app:
        yield app


def _send(app: Celery, **options: Any) -> str:
    result = app.send_task(GenerateTask.name, kwargs=FIELDS, queue=queue_name(None), ignore_result=True, **options)
    return str(result.id)


def _wait_until_done(connection: redis.Redis, task_ids: list[str], end: float) -> None:
    left = set(task_ids)
    while left:
        assert time.monotonic() < end, f"{len(left)} of {len(task_ids)} are not done"
        left = {task_id for task_id in left if connection.hget(schema.job_key(task_id), "state") != b"succeeded"}
        time.sleep(0.05)


def _num_noted(connection: redis.Redis) -> int:
    return sum(connection.hlen(key) for key in connection.scan_iter(schema.UNACKED + "*"))


def test_foreign_messages_survive_the_workers_that_have_them(
    app: Celery, redis_url: str, connection: redis.Redis, shallow_model: Path, tmp_path: Path
) -> None:
    chance = random.Random(7)
    num_held = 0
    with ExitStack() as workers:
        survivor = workers.enter_context(WorkerProcess(redis_url, shallow_model, tmp_path))
        for ends_jobs in (True, True, False, False):
            victim = workers.enter_context(WorkerProcess(redis_url, shallow_model, tmp_path))
            if not ends_jobs:  # what it takes it has until it is killed
                os.kill(victim.engine_pid, signal.SIGSTOP)
            task_ids = [_send(app) for _ in range(40)]
            time.sleep(chance.uniform(0, 0.05))
            victim.kill()
            num_held += _num_noted(connection)
            _wait_until_done(connection, task_ids, time.monotonic() + LEASE_S + SLACK_S)
        assert num_held, "no worker had any"
        assert survivor.process.poll() is None


def test_a_foreign_message_without_a_record_is_delivered_again(
    app: Celery, redis_url: str, connection: redis.Redis, shallow_model: Path, tmp_path: Path
) -> None:
    task_id = _send(app)
    (key,) = connection.scan_iter(queue_name(None) + "*", _type="list")
    text = connection.rpop(key)
    connection.hset(schema.unacked_key("dead"), f"0 {key.decode()}", text)  # as a worker leaves it that was killed
    now_s, _ = connection.time()
    connection.zadd(schema.RECEIVERS, {"dead": int((now_s + LEASE_S) * 1000)})
    begun = time.monotonic()
    with WorkerProcess(redis_url, shallow_model, tmp_path):
        _wait_until_done(connection, [task_id], max(begun + LEASE_S, time.monotonic()) + SLACK_S)
    assert not connection.exists(schema.unacked_key("dead"))


def test_a_message_of_a_killed_worker_that_redis_has_forgotten_is_delivered_again(
    app: Celery, redis_url: str, connection: redis.Redis, shallow_model: Path, tmp_path: Path
) -> None:
    """F09: it was lost for ever."""
    with WorkerProcess(redis_url, shallow_model, tmp_path) as victim:
        task_id = _send(app, countdown=5)
        wait_until(lambda: _num_noted(connection))
        victim.process.send_signal(signal.SIGSTOP)
        connection.delete(schema.RECEIVERS)
        victim.kill()
    with WorkerProcess(redis_url, shallow_model, tmp_path):
        _wait_until_done(connection, [task_id], time.monotonic() + 5 + 2 * LEASE_S + SLACK_S)


def test_a_message_that_waits_for_its_time_in_a_killed_worker_is_run_in_time_by_another(
    app: Celery, redis_url: str, connection: redis.Redis, shallow_model: Path, tmp_path: Path
) -> None:
    workers = [WorkerProcess(redis_url, shallow_model, tmp_path) for _ in range(2)]
    with workers[0], workers[1]:
        sent = time.monotonic()
        task_id = _send(app, countdown=6)
        wait_until(lambda: _num_noted(connection))
        (noted,) = connection.scan_iter(schema.UNACKED + "*")
        (victim,) = [worker for worker in workers if f"-{worker.process.pid}-" in noted.decode()]
        victim.kill()
        _wait_until_done(connection, [task_id], max(sent + 6, time.monotonic() + LEASE_S) + SLACK_S)
        assert time.monotonic() > sent + 5.5, "not before its time"


def test_a_worker_that_stops_in_order_puts_back_what_it_has_not_run(
    app: Celery, redis_url: str, connection: redis.Redis, shallow_model: Path, tmp_path: Path
) -> None:
    with WorkerProcess(redis_url, shallow_model, tmp_path):
        _send(app, countdown=3600)
        wait_until(lambda: _num_noted(connection))
    assert _num_noted(connection) == 0
    assert sum(connection.llen(key) for key in connection.scan_iter(queue_name(None) + "*", _type="list")) == 1


def test_a_worker_whose_event_loop_stood_still_goes_on_with_what_it_has(
    redis_url: str, connection: redis.Redis, shallow_model: Path, tmp_path: Path
) -> None:
    with (
        WorkerProcess(redis_url, shallow_model, tmp_path, **slow_engine(tmp_path)) as slow,
        WorkerProcess(redis_url, shallow_model, tmp_path, **slow_engine(tmp_path)),
        Client(redis_url) as client,
    ):
        job_ids = client.submit_many([FIELDS | {"max_tokens": 60}] * 12)
        time.sleep(0.3)
        slow.process.send_signal(signal.SIGSTOP)
        time.sleep(LEASE_S + 2)
        slow.process.send_signal(signal.SIGCONT)
        results = [client.result(job_id, timeout=60) for job_id in job_ids]
        assert len({tuple(result.choices[0].token_ids) for result in results}) == 1
        wait_until(lambda: not _num_noted(connection))
        assert slow.process.poll() is None
