"""F04, as far as transport and consumer see it: no message ends a worker, keeps another one waiting, or comes again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from orcd.client import Client
from orcd.errors import InvalidRequest
from orcd.store import schema
from orcd.store.enqueue import queue_name
from tasks.celery_ext.message import MAX_MESSAGE_BYTES
from tasks.celery_ext.tasks import GenerateTask
from tasks.local.redis_server import RedisServer
from tests.conftest import wait_until
from tests.tasks.celery_ext.unreadable import CHANGES, TEXTS, envelope, texts
from tests.tasks.worker_process import WorkerProcess

CANARY = "Kanarienvogel"
QUEUE = queue_name(None) + ":5"
FIELDS = {"prompt": CANARY, "max_tokens": 2, "temperature": 0.0}
VALID = envelope("valid", GenerateTask.name, FIELDS)
BAD = texts(VALID)


@pytest.fixture(scope="module")
def worker(shallow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """A worker for all of them."""
    with RedisServer() as server, WorkerProcess(server.url, shallow_model, tmp_path_factory.mktemp("bad")) as worker:
        yield worker


@pytest.fixture
def redis_of_worker(worker: WorkerProcess) -> Iterator[Any]:
    with closing(redis.Redis.from_url(worker.redis_url)) as connection:
        yield connection


def _result(client: Client, job_id: str) -> str:
    return client.result(job_id, timeout=60).state


def _stored(connection: redis.Redis, task_id: str) -> Any:
    """The state of a task in Celery's results."""
    text: Any = connection.get(f"celery-task-meta-{task_id}")
    return json.loads(text)["status"] if text else None


def _num_noted(connection: redis.Redis) -> int:
    return sum(connection.hlen(key) for key in connection.scan_iter(schema.UNACKED + "*"))


def test_the_message_that_the_others_are_made_of_is_a_good_one(worker: WorkerProcess, redis_of_worker: Any) -> None:
    redis_of_worker.lpush(QUEUE, json.dumps(VALID))
    with Client(worker.redis_url) as client:
        wait_until(lambda: redis_of_worker.exists(schema.job_key("valid")))
        assert _result(client, "valid") == "succeeded"


@pytest.mark.parametrize("name", [*TEXTS, *CHANGES])
def test_a_worker_outlives_a_broken_message_and_takes_the_next_one(
    worker: WorkerProcess, redis_of_worker: Any, name: str
) -> None:
    redis_of_worker.delete(schema.DEAD)
    next_one = envelope(f"after-{name}", GenerateTask.name, FIELDS)
    redis_of_worker.lpush(QUEUE, BAD[name], json.dumps(next_one))
    with Client(worker.redis_url) as client:
        wait_until(lambda: redis_of_worker.exists(schema.job_key(f"after-{name}")))
        assert _result(client, f"after-{name}") == "succeeded"
    wait_until(lambda: _num_noted(redis_of_worker) == 0)
    assert worker.process.poll() is None
    assert redis_of_worker.llen(QUEUE) == 0, "it is not put back"
    letters = [letter for _, letter in redis_of_worker.xrange(schema.DEAD)]
    assert [letter[b"text"] for letter in letters] in ([BAD[name][: 64 * 1024]], []), "as it was, and once"
    for letter in letters:
        message_id = letter.get(b"id", b"").decode()
        has_id = b'"id": "%s"' % name.encode() in BAD[name] and letter[b"reason"] != b"it is not JSON in UTF-8"
        assert bool(message_id) == has_id or name.startswith("protocol-1")
        if message_id:
            wait_until(lambda message_id=message_id: _stored(redis_of_worker, message_id) == "FAILURE")
    assert CANARY not in worker.log_path.read_text()


def test_many_broken_messages_come_together_with_good_ones(worker: WorkerProcess, redis_of_worker: Any) -> None:
    good = [json.dumps(envelope(f"good-{number}", GenerateTask.name, FIELDS)) for number in range(20)]
    broken = list(BAD.values())
    redis_of_worker.lpush(QUEUE, *broken, *good, *broken)
    with Client(worker.redis_url) as client:
        wait_until(lambda: redis_of_worker.exists(schema.job_key("good-19")))
        assert {_result(client, f"good-{number}") for number in range(20)} == {"succeeded"}
    time.sleep(0.5)
    assert worker.process.poll() is None
    assert not [event for event in worker.events("celery") if event["message"].startswith("Redis is away")]


def test_the_sender_of_a_message_that_cannot_be_read_does_not_wait_for_ever(
    worker: WorkerProcess, redis_of_worker: Any
) -> None:
    """As a Celery application whose serializer is not JSON would, as nothing answers its task."""
    app = Celery(broker=worker.redis_url, backend=worker.redis_url)
    redis_of_worker.lpush(QUEUE, BAD["content-type-pickle"])
    with pytest.raises(InvalidRequest, match="the message cannot be read: its content type is not application/json"):
        app.AsyncResult("content-type-pickle").get(timeout=60)


@pytest.mark.parametrize(
    ("task_id", "task", "reason"),
    [
        ("foreign", "shop.pay", "the message cannot be run: task shop.pay is none of orcd's"),
        ("mapped", "celery.starmap", "the message cannot be run: task celery.starmap is none of orcd's"),
        ("an id of spaces, and ☂", "shop.pay", "the message cannot be run"),
        ("x" * 300, GenerateTask.name, "the message cannot be read: its headers are wrong"),
    ],
)
def test_the_sender_of_a_message_that_is_none_of_ours_does_not_wait_for_ever(
    worker: WorkerProcess, task_id: str, task: str, reason: str
) -> None:
    app = Celery(broker=worker.redis_url, backend=worker.redis_url)
    with pytest.raises(InvalidRequest, match=reason):
        app.send_task(task, kwargs=FIELDS, queue="orcd", task_id=task_id).get(timeout=60)


def test_the_sender_of_a_message_that_is_too_long_does_not_wait_for_ever(worker: WorkerProcess) -> None:
    app = Celery(broker=worker.redis_url, backend=worker.redis_url)
    request = {"prompt": CANARY * (MAX_MESSAGE_BYTES // len(CANARY)), "max_tokens": 2}
    with pytest.raises(InvalidRequest, match=r"cannot be read: it has \d+ bytes; at most 33554432 are read"):
        app.send_task(GenerateTask.name, kwargs=request, queue="orcd").get(timeout=60)


def test_a_job_of_the_id_is_not_what_cannot_be_read(worker: WorkerProcess, redis_of_worker: Any) -> None:
    bad = {**VALID, "content-type": "application/x-python-serialize"}
    redis_of_worker.delete(schema.DEAD, "celery-task-meta-valid")
    redis_of_worker.lpush(QUEUE, json.dumps(bad))
    wait_until(lambda: redis_of_worker.exists(schema.DEAD))
    redis_of_worker.lpush(QUEUE, json.dumps(VALID))
    wait_until(lambda: redis_of_worker.exists("celery-task-meta-valid"))
    assert _stored(redis_of_worker, "valid") == "SUCCESS"


def test_a_broadcast_that_cannot_be_read_is_ignored(worker: WorkerProcess, redis_of_worker: Any) -> None:
    for text in (b"hello", b"[1]", b"{}", b"\xff", b"null", *list(BAD.values())[:20]):
        redis_of_worker.publish("/0.celery.pidbox", text)
    redis_of_worker.publish(schema.WAKE, b"\xff")
    with Client(worker.redis_url) as client:
        assert _result(client, client.submit(**FIELDS)) == "succeeded"
    assert worker.process.poll() is None
    assert not [event for event in worker.events("celery") if event["message"].startswith("Redis is away")]
