"""Names and ids that senders make up are not shown where others read: events, logs, lists of dead letters."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from orcd.client import Client
from orcd.store import schema
from orcd.store.dead_letters import DeadLetters
from tasks.app import create_app
from tests.conftest import wait_until
from tests.tasks.celery_ext.unreadable import envelope
from tests.tasks.observe.test_flower import CANARY, request
from tests.tasks.worker_process import WorkerProcess
from worker.settings import Settings

TASK = "orcd.generate"
REQUEST: dict[str, Any] = {"prompt": "once", "max_tokens": 1}
ANSWERED = {
    "unknown-field": REQUEST | {CANARY: 1},
    "unknown-inner-field": REQUEST | {"messages": [{CANARY: 1}]},
    "token-bias": REQUEST | {"logit_bias": {CANARY: 1}},
    "job-id-of-odd-form": {"job_id": f"{CANARY}/1"},
    "job-id-of-wrong-type": {"job_id": {CANARY: CANARY}},
    "tenant": REQUEST | {"tenant": CANARY, "user": CANARY},
}
"""By well-formed task ids: messages of which each sender is told what is wrong."""


@pytest.mark.parametrize("kwargs", [{"job_id": f"{CANARY}/1"}, {"job_id": [CANARY]}, {"job_ids": [CANARY + " 1"]}])
def test_job_ids_of_odd_form_are_not_shown(kwargs: dict[str, Any]) -> None:
    shown = request(kwargs)
    assert CANARY not in shown.kwargsrepr
    assert CANARY not in repr(shown.info())


@contextmanager
def _events(redis_url: str) -> Iterator[list[dict[str, Any]]]:
    """What Flower is sent while the block runs."""
    events: list[dict[str, Any]] = []
    with create_app(Settings(redis_url=redis_url)) as app, app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": events.append})
        thread = threading.Thread(target=receiver.capture, kwargs={"limit": None, "wakeup": True})
        thread.start()
        try:
            wait_until(lambda: events)  # a heartbeat: it listens
            yield events
        finally:
            receiver.should_stop = True
            thread.join()


def _send(connection: redis.Redis, message: dict[str, Any]) -> None:
    connection.lpush("orcd", json.dumps(message))


def test_names_that_senders_make_up_are_shown_to_nobody_else(
    redis_url: str, connection: redis.Redis, demo_model: Path, tmp_path: Path
) -> None:
    odd_id = envelope(f"{CANARY} is no id", "other.task", REQUEST)
    odd_header = envelope("odd-header", TASK, REQUEST)
    odd_header["headers"] |= {"retries": CANARY, CANARY: CANARY}
    with WorkerProcess(redis_url, demo_model, tmp_path) as worker:
        with Client(redis_url) as client, _events(redis_url) as events:
            for task_id, fields in ANSWERED.items():
                _send(connection, envelope(task_id, TASK, fields))
            _send(connection, odd_id)
            _send(connection, odd_header)
            other = client.submit(prompt="once", model=f"{CANARY} model")
            assert client.result(client.submit(**REQUEST), timeout=30).error is None
            wait_until(lambda: connection.xlen(schema.DEAD) == 2)
            failed = {"task-failed"}
            wait_until(lambda: sum(event["type"] in failed for event in events) == len(ANSWERED))
            client.cancel(other)
            shown = repr(events)
        assert CANARY not in shown
        assert {event["exception"] for event in events if event["type"] in failed} == {"InvalidRequest"}
        assert CANARY not in worker.log_path.read_text()
    assert CANARY not in repr(list(DeadLetters(connection)))
