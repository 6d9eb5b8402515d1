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
ODD: dict[str, dict[str, Any]] = {"inline": REQUEST, "chunk": {"requests": [REQUEST, REQUEST]}}
"""Messages whose jobs have ids that are made of the task's."""


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


def _send_odd(connection: redis.Redis, name: str, fields: dict[str, Any], **headers: str) -> str:
    """Send a task whose id its sender has made up; returns the id."""
    task_id = f"{CANARY} sings/{name}"
    message = envelope(task_id, "orcd.generate_chunk" if "requests" in fields else TASK, fields)
    message["headers"] |= headers
    _send(connection, message)
    return task_id


def test_names_that_senders_make_up_are_shown_to_nobody_else(
    redis_url: str, connection: redis.Redis, shallow_model: Path, tmp_path: Path
) -> None:
    odd_id = envelope(f"{CANARY} is no id", "other.task", REQUEST)
    odd_header = envelope("odd-header", TASK, REQUEST)
    odd_header["headers"] |= {"retries": CANARY, CANARY: CANARY}
    with WorkerProcess(redis_url, shallow_model, tmp_path) as worker:
        with Client(redis_url) as client, _events(redis_url) as events:
            for task_id, fields in ANSWERED.items():
                _send(connection, envelope(task_id, TASK, fields))
            _send(connection, odd_id)
            _send(connection, odd_header)
            other = client.submit(prompt="once", model=f"{CANARY} model")
            assert client.result(client.submit(**REQUEST), timeout=60).error is None
            wait_until(lambda: connection.xlen(schema.DEAD) == 2)
            failed = {"task-failed"}
            wait_until(lambda: sum(event["type"] in failed for event in events) == len(ANSWERED))
            client.cancel(other)
            shown = repr(events)
        assert CANARY not in shown
        assert {event["exception"] for event in events if event["type"] in failed} == {"InvalidRequest"}
        assert CANARY not in worker.log_path.read_text()
    assert CANARY not in repr(list(DeadLetters(connection)))


def test_tasks_whose_ids_are_made_up_are_answered_and_shown_to_nobody(
    redis_url: str, connection: redis.Redis, shallow_model: Path, tmp_path: Path
) -> None:
    with WorkerProcess(redis_url, shallow_model, tmp_path) as worker, create_app(Settings(redis_url=redis_url)) as app:
        with Client(redis_url) as client, _events(redis_url) as events:
            job_id = client.submit(**REQUEST)
            sent = {name: _send_odd(connection, name, fields) for name, fields in ODD.items()}
            sent["named"] = _send_odd(connection, "named", {"job_id": job_id})
            expired = _send_odd(connection, "expired", REQUEST, expires="2020-01-01T00:00:00+00:00")
            waiting = _send_odd(connection, "waiting", REQUEST, eta="2099-01-01T00:00:00+00:00")
            public = envelope("public", TASK, REQUEST)
            public["headers"] |= dict.fromkeys(("root_id", "parent_id", "shadow"), f"{CANARY} sings")
            _send(connection, public)
            app.control.revoke(f"{CANARY} is revoked")
            wait_until(lambda: app.AsyncResult(expired).ready())
            wait_until(lambda: app.AsyncResult("public").ready() and app.AsyncResult(sent["named"]).ready())
            for name in ODD:
                wait_until(lambda name=name: app.AsyncResult(sent[name]).ready())  # type: ignore[misc]
                assert "1 to 128 of the characters" in str(app.AsyncResult(sent[name]).result)
            assert app.AsyncResult(sent["named"]).state == "SUCCESS"
            wait_until(lambda: ("task-succeeded", "public") in [(each["type"], each.get("uuid")) for each in events])
            inspect = app.control.inspect()
            wait_until(lambda: [len(found) for found in (inspect.scheduled() or {}).values()] == [1])
            answers = repr([inspect.active(), inspect.reserved(), inspect.scheduled(), inspect.revoked()])
            names = {event["name"] for event in events if event["type"] == "task-received"}
            shown = repr(events)
        assert CANARY not in shown
        assert CANARY not in answers
        assert CANARY not in worker.log_path.read_text()
        assert names == {TASK}
        assert connection.exists(f"celery-task-meta-{waiting}") == 0
