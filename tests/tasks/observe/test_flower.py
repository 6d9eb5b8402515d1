"""Celery's own tools are shown no argument of a message but job ids."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery
from celery.worker import state
from kombu import Message
from kombu.utils.imports import symbol_by_name

from orcd.settings import ClientSettings
from orcd.store.broker import broker_configuration
from tasks.celery_ext.tasks import TASKS
from tasks.observe.flower import PrivateDispatcher, PrivateRequest

CANARY = "Kanarienvogel"


def request(kwargs: dict[str, Any], *args: Any) -> PrivateRequest:
    """The message as a worker has it when it has been received."""
    app = Celery(set_as_current=False)
    app.conf.update(broker_configuration(ClientSettings()))
    headers = {"id": "t-1", "task": "orcd.generate", "lang": "py", "argsrepr": repr(args), "kwargsrepr": repr(kwargs)}
    message = Message(body=None, headers=headers, properties={}, delivery_info={}, channel=Mock())
    task = app.register_task(TASKS[0]())
    return PrivateRequest(
        message, app=app, task=task, body=(list(args), kwargs, {}), headers=headers, decoded=True, utc=True
    )


@pytest.mark.parametrize("safe", [True, False])
def test_an_inline_request_shows_nothing(safe: bool) -> None:
    shown = request({"prompt": CANARY}, CANARY)
    assert (shown.argsrepr, shown.kwargsrepr) == ("()", "{}")
    info = shown.info(safe=safe)
    assert (info["id"], info["args"], info["kwargs"]) == ("t-1", [], {})
    assert CANARY not in repr(info)


@pytest.mark.parametrize("kwargs", [{"job_id": "a"}, {"job_ids": ["a", "b"]}])
def test_job_ids_are_shown(kwargs: dict[str, Any]) -> None:
    shown = request(kwargs | {"prompt": CANARY})
    assert shown.kwargsrepr == repr(kwargs)
    assert shown.info()["kwargs"] == kwargs


@pytest.mark.parametrize("task", TASKS)
def test_all_tasks_have_such_requests(task: Any) -> None:
    assert issubclass(symbol_by_name(task.Request), PrivateRequest)


def test_a_worker_that_leaves_holds_no_events_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop, which flushes them, has ended while jobs still do: Flower showed these as running for ever."""
    with Celery(set_as_current=False, broker="memory://") as app, app.connection() as connection:
        dispatcher = PrivateDispatcher(connection, app=app, buffer_group=["task"])
        dispatcher.producer = Mock()
        publish = dispatcher.producer.publish
        dispatcher.send("task-started", uuid="t-1")
        assert not publish.called
        monkeypatch.setattr(state, "should_stop", 0)
        dispatcher.send("worker-offline")
        dispatcher.send("task-succeeded", uuid="t-1")
        sent = [call.args[0] for call in publish.call_args_list]
    assert [event["type"] for batch in sent for event in (batch if isinstance(batch, list) else [batch])] == [
        "worker-offline",
        "task-started",
        "task-succeeded",
    ]
