"""What Flower hears of tasks comes in batches, and all of it comes; one that cannot be run goes to the dead letters."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import redis
from celery.worker import state

from orcd.client import Client
from tasks.celery_ext.consumer import PROGRESS_PARTS, Consumer
from tasks.celery_ext.request import Request
from tests.conftest import wait_until
from tests.tasks.slow_engine import held_engine, slow_engine
from tests.tasks.worker_process import WorkerProcess

NUM_JOBS = 30


def test_events_of_many_tasks_come_together_and_none_is_missing(
    redis_url: str, connection: redis.Redis, shallow_model: Path, tmp_path: Path
) -> None:
    listener: Any = connection.pubsub(ignore_subscribe_messages=True)
    batches: list[list[dict[str, Any]]] = []
    told: dict[str, list[str]] = {}

    def all_are(kind: str) -> bool:
        """Whether it is told of every job, as far as was heard."""
        message = listener.get_message(timeout=1)
        events = json.loads(base64.b64decode(json.loads(message["data"])["body"])) if message else {}
        if isinstance(events, list):  # others are heartbeats
            batches.append(events)
            for event in events:
                told[event["uuid"]].append(event["type"])
        return all(kind in types for types in told.values())

    slow = slow_engine(tmp_path, 0.0)
    with listener, WorkerProcess(redis_url, shallow_model, tmp_path, **slow), Client(redis_url) as client:
        listener.psubscribe("*celeryev*")
        with held_engine(tmp_path, 1):
            told |= {
                job_id: []
                for job_id in client.submit_many(
                    [{"prompt_token_ids": [5], "max_tokens": 60, "ignore_eos": True}] * NUM_JOBS
                )
            }
            wait_until(lambda: all_are("task-started"))
        wait_until(lambda: all_are("task-succeeded"))
    assert all(types.count("task-received") == types.count("task-succeeded") == 1 for types in told.values())
    assert len([each for each in batches if any(event["type"] == "task-succeeded" for event in each)]) < NUM_JOBS


class Scene:
    """A consumer whose pool fails with an error, and a request for it."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.dead_letters: list[tuple[str, str]] = []
        self.consumer = Consumer.__new__(Consumer)
        self.consumer._run_request = self._fail
        qos = SimpleNamespace(dead_letter=lambda tag, why: self.dead_letters.append((tag, why.reason)))
        message = SimpleNamespace(channel=SimpleNamespace(qos=qos), delivery_tag="0 orcd")
        self.request = Mock(id="task-1", message=message)

    def _fail(self, _: Any) -> None:
        raise self.error


def test_a_task_that_the_pool_cannot_take_goes_to_the_dead_letters() -> None:
    """Also when its time comes later, in the timer of the event loop."""
    scene = Scene(KeyError("Kanarienvogel"))
    scene.consumer._start_request(scene.request)
    assert scene.dead_letters == [("0 orcd", "it cannot be run: KeyError")]


@pytest.mark.parametrize("error", [redis.ConnectionError("away"), redis.ReadOnlyError("replica"), OSError("network")])
def test_a_task_is_not_at_fault_when_redis_is_away(error: Exception) -> None:
    scene = Scene(error)
    with pytest.raises(type(error)):
        scene.consumer._start_request(scene.request)
    assert scene.dead_letters == []


def test_each_running_task_tells_its_progress_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Told(Request):
        def __init__(self, id: str) -> None:
            self.id = id

        def tell_progress(self, running: Any) -> None:
            assert running == {"job": "running"}
            told.append(self.id)

    consumer = Consumer.__new__(Consumer)
    consumer._progress_part = 0
    consumer.pool = Mock()
    consumer.pool.dispatcher.running_jobs.return_value = {"job": "running"}
    monkeypatch.setattr(state, "active_requests", [Told(f"task-{number}") for number in range(50)])
    for _ in range(PROGRESS_PARTS):
        before = len(told)
        consumer._tell_progress()
        assert len(told) - before < 25, "not all at once"
    assert sorted(told) == sorted(f"task-{number}" for number in range(50))


def test_an_acknowledgement_is_noted_by_whoever_answers_and_wakes_only_an_event_loop_without_room() -> None:
    consumer = Consumer.__new__(Consumer)
    consumer.hub = Mock()
    channel = SimpleNamespace(lacks_room=False)
    consumer.task_consumer = SimpleNamespace(channel=channel)
    message = Mock()
    message.ack_log_error.__name__, message.reject_log_error.__name__ = "ack_log_error", "reject_log_error"
    consumer.call_soon_ack(message.ack_log_error, "logger", ())
    message.ack_log_error.assert_called_once_with("logger", ())
    assert not consumer.hub.call_soon.called
    channel.lacks_room = True  # it looks again whether there is any
    consumer.call_soon_ack(message.ack_log_error, "logger", ())
    assert consumer.hub.call_soon.call_count == 1
    consumer.call_soon_ack(message.reject_log_error, "logger", (), True)
    assert consumer.hub.call_soon.call_count == 2
    assert not message.reject_log_error.called, "that may wait for Redis"


def test_the_event_loop_may_lose_its_connection_while_another_thread_acknowledges() -> None:
    class Losing(Consumer):
        def __init__(self) -> None:
            self._consumers = [Mock(), None]

        @property
        def task_consumer(self) -> Any:
            return self._consumers.pop(0)

    consumer, message = Losing(), Mock()
    consumer.hub = Mock()
    message.ack_log_error.__name__ = "ack_log_error"
    consumer.call_soon_ack(message.ack_log_error, "logger", ())
    message.ack_log_error.assert_called_once_with("logger", ())
