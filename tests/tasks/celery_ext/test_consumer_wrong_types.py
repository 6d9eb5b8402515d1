"""F15: a shared key of another type affects only what is in it; workers start, take and say which key it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from orcd.client import Client
from orcd.store import schema
from tests.tasks.worker_process import WorkerProcess

FIELDS = {"prompt": "old pond", "max_tokens": 4, "temperature": 0.0, "ignore_eos": True}
SHARED = [
    "orcd:9",
    "orcd:5",
    "_kombu.binding.orcd",
    "_kombu.binding_permanent.orcd",
    "_kombu.binding.celery.pidbox",
    "_kombu.binding_deadlines",
    schema.RECEIVERS,
]
TIME_S = 60


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url) as client:
        yield client


def _break(connection: redis.Redis, keys: list[str]) -> None:
    for key in keys:
        connection.set(key, "another type")


def _wait_until_named(worker: WorkerProcess, key: str) -> None:
    end = time.monotonic() + TIME_S
    while not (named := [event for event in worker.events("celery") if f"key {key} " in event["message"]]):
        assert time.monotonic() < end, worker.events()
        time.sleep(0.05)
    assert len(named) == 1


@pytest.mark.parametrize("key", SHARED)
def test_a_worker_starts_and_takes_although_a_shared_key_has_another_type(
    client: Client, redis_url: str, connection: redis.Redis, shallow_model: Path, tmp_path: Path, key: str
) -> None:
    _break(connection, [key])
    with WorkerProcess(redis_url, shallow_model, tmp_path) as worker:
        assert client.result(client.submit(**FIELDS), timeout=TIME_S).state == "succeeded"
        _wait_until_named(worker, key)
        assert {event["level"] for event in worker.events("celery")} == {"warning"}


def test_a_worker_that_asks_others_at_its_start_begins_without_their_answers(
    client: Client, redis_url: str, connection: redis.Redis, shallow_model: Path, tmp_path: Path
) -> None:
    replies = "_kombu.binding.reply.celery.pidbox"
    _break(connection, [replies, "_kombu.binding.celeryev"])
    with WorkerProcess(redis_url, shallow_model, tmp_path, by_celery=True) as worker:
        assert client.result(client.submit(**FIELDS), timeout=TIME_S).state == "succeeded"
        _wait_until_named(worker, replies)
        assert {event["level"] for event in worker.events("celery")} == {"warning"}


def test_a_worker_goes_on_and_reconnects_although_shared_keys_have_another_type(
    redis_url: str, connection: redis.Redis, shallow_model: Path, tmp_path: Path
) -> None:
    with ExitStack() as clients, WorkerProcess(redis_url, shallow_model, tmp_path) as worker:
        for connections_cut in (False, True):
            _break(connection, SHARED)
            if connections_cut:
                for kind in ("normal", "pubsub"):
                    connection.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            client = clients.enter_context(Client(redis_url))
            for priority in (9, 5, 0):
                job_id = client.submit(**FIELDS, priority=priority)
                assert client.result(job_id, timeout=TIME_S).state == "succeeded"
        assert worker.process.poll() is None
