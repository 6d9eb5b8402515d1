"""F04: what a real worker does with messages that it cannot understand, and with those that are wrong in their fields.

`test_consumer_unreadable` sends the same kinds one by one, each before a good one.
"""

from __future__ import annotations

import base64
import copy
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from orcd.client import Client
from orcd.store import schema
from orcd.store.dead_letters import DEAD_LETTER_BYTES, DEAD_LETTER_TTL_S, DeadLetters
from tasks.celery_ext.tasks import GenerateTask
from tests.conftest import wait_until
from tests.tasks.celery_ext.test_message import CANARY, FIELDS, FOREIGN, KINDS, VALID
from tests.tasks.celery_ext.unreadable import Envelope, envelope, texts
from tests.tasks.worker_process import WorkerProcess

QUEUE = "orcd:5"
BAD = {name: text for name, text in texts(VALID).items() if name in KINDS}
FOREIGN_TASK = "shop.pay"


@pytest.fixture
def worker(redis_url: str, shallow_model: Path, tmp_path: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess(redis_url, shallow_model, tmp_path) as worker:
        yield worker
        assert worker.process.poll() is None
        assert CANARY not in worker.log_path.read_text()


def send(connection: redis.Redis, *messages: Envelope | bytes) -> None:
    for message in messages:
        connection.lpush(QUEUE, message if isinstance(message, bytes) else json.dumps(message))


def good(task_id: str) -> Envelope:
    return envelope(task_id, GenerateTask.name, FIELDS)


def state(client: Client, connection: redis.Redis, job_id: str) -> str:
    """How a job ended whose record is written when its message arrives."""
    wait_until(lambda: connection.exists(schema.job_key(job_id)))
    return client.result(job_id, timeout=60).state


def stored(connection: redis.Redis, task_id: str) -> Any:
    """The Celery result of a task."""
    key = f"celery-task-meta-{task_id}"
    wait_until(lambda: connection.exists(key))
    return json.loads(connection.get(key) or b"")


def test_dead_letters_say_of_every_kind_what_was_wrong_and_keep_its_bytes(
    worker: WorkerProcess, connection: redis.Redis, client: Client
) -> None:
    for name, text in BAD.items():
        send(connection, text, good(f"after-{name}"))
    assert {state(client, connection, f"after-{name}") for name in BAD} == {"succeeded"}
    letters = DeadLetters(connection)
    found = dict(zip(BAD, letters, strict=True))
    for name, letter in found.items():
        assert letter.reason.startswith(KINDS[name]), name
        assert letter.list_name == QUEUE
        assert letter.num_bytes == len(BAD[name])
        kept = BAD[name] if name in FOREIGN else BAD[name][:DEAD_LETTER_BYTES]
        assert letters.get(letter.id)[1] == kept
        assert CANARY not in repr(letter)
    assert found["kwargs-null"].message_id == "kwargs-null"
    assert [letter.at_ms for letter in letters] == sorted(letter.at_ms for letter in letters)
    assert DEAD_LETTER_TTL_S - 120 < connection.ttl(schema.DEAD) <= DEAD_LETTER_TTL_S
    wait_until(lambda: not connection.keys(schema.UNACKED + "*"))
    assert len(worker.events("ready")) == 1
    assert not [event for event in worker.events("celery") if event["message"].startswith("Redis is away")]


def test_a_message_of_ours_that_is_wrong_in_its_fields_is_answered_with_the_error(
    worker: WorkerProcess, connection: redis.Redis
) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "max_tokens": {"prompt": CANARY, "max_tokens": 0},
        "nonsense": {"prompt": CANARY, "nonsense": 1},
        "prompt": {"prompt": 7},
        "job_id": {"job_id": ["a"]},
        "surrogate": {"prompt": "\ud800"},
        "exactly-one": {},
        "seed": {"prompt": CANARY, "seed": 10**30},
    }
    for name, fields in wrong.items():
        send(connection, envelope(f"wrong-{name}", GenerateTask.name, fields))
    for name in wrong:
        answer = stored(connection, f"wrong-{name}")
        assert answer["status"] == "FAILURE", name
        assert answer["result"]["exc_type"] == "InvalidRequest", name
        assert CANARY not in json.dumps(answer)
    assert connection.xlen(schema.DEAD) == 0


def test_messages_of_older_senders_and_compressed_ones_run(
    worker: WorkerProcess, connection: redis.Redis, client: Client
) -> None:
    old = {"task": "tasks.generate", "id": "old", "args": [], "kwargs": FIELDS, "retries": 0, "eta": None}
    protocol_1 = VALID | {"headers": {}, "body": base64.b64encode(json.dumps(old).encode()).decode()}
    compressed = copy.deepcopy(good("compressed"))
    compressed["headers"]["compression"] = "application/x-gzip"
    compressed["body"] = base64.b64encode(zlib.compress(base64.b64decode(compressed["body"]))).decode()
    send(connection, protocol_1, compressed)
    assert state(client, connection, "old") == "succeeded"
    assert state(client, connection, "compressed") == "succeeded"
    assert stored(connection, "old")["status"] == "SUCCESS"
    assert connection.xlen(schema.DEAD) == 0


def test_a_message_of_another_application_is_put_aside_whole_and_can_be_sent_to_its_queue(
    worker: WorkerProcess, connection: redis.Redis
) -> None:
    text = json.dumps(envelope("pay-1", FOREIGN_TASK, {"note": "x" * 100_000})).encode()
    send(connection, text)
    letters = DeadLetters(connection)
    wait_until(lambda: list(letters))
    (letter,) = letters
    assert (letter.reason, letter.message_id) == (f"task {FOREIGN_TASK} is none of orcd's", "pay-1")
    assert letters.retry(letter.id, "celery") == "celery"
    assert connection.lrange("celery", 0, -1) == [text]
