"""What Celery does with a message that must not run, or at a cold shutdown, is left to the pool."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import Mock

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.exceptions import TaskRevokedError
from celery.worker import state
from celery.worker.request import create_request_cls
from kombu import Message

from orcd.errors import Cancelled, Expired, VramOom
from tasks.celery_ext.request import Request
from tasks.celery_ext.tasks import GenerateTask


@pytest.fixture
def app() -> Iterator[Celery]:
    with Celery(set_as_current=False, backend="cache+memory://") as app:
        app.conf.task_acks_late = True
        app.register_task(GenerateTask())
        app.backend.client.cache.clear()  # all apps have the same memory
        yield app
    state.reset_state()
    state.revoked.clear()


def request(app: Celery, **headers: Any) -> Request:
    """The message as a worker has it when it has been received, of the class that Celery makes of ours."""
    task = app.tasks[GenerateTask.name]
    sent = {"id": "t-1", "task": task.name, "lang": "py"} | headers
    message = Message(body=None, headers=sent, properties={}, delivery_info={}, channel=Mock())
    kind = create_request_cls(Request, task, Mock(), "here", None, app=app)
    made: Request = kind(message, app=app, task=task, body=([], {"job_id": "a"}, {}), headers=sent, decoded=True)
    made._on_ack = Mock()
    return made


def revoked(reason: str) -> ExceptionInfo:
    try:
        raise TaskRevokedError(reason)
    except TaskRevokedError:
        return ExceptionInfo()


def test_a_revoked_message_goes_to_the_pool_with_the_reason(app: Celery) -> None:
    """F10: Celery answered it, and its job ran when its record was next looked at."""
    state.revoked.add("t-1")
    made = request(app)
    assert not made.revoked()
    assert made.request_dict["revoked"] == "revoked"
    assert not made.acknowledged


def test_so_does_one_that_has_expired_and_no_other(app: Celery) -> None:
    past, future = (datetime.now(UTC) + timedelta(seconds=s) for s in (-1, 60))
    made = request(app, expires=future.isoformat())
    assert not made.revoked()
    assert "revoked" not in made.request_dict
    made = request(app, expires=past.isoformat())
    assert not made.revoked()
    assert made.request_dict["revoked"] == "expired"


@pytest.mark.parametrize("reason", ["revoked", "expired", "terminated"])
def test_when_its_jobs_are_ended_it_is_stored_and_acknowledged_as_revoked(app: Celery, reason: str) -> None:
    made = request(app)
    made.on_success((1, revoked(reason), 0.1))
    assert app.AsyncResult("t-1").state == "REVOKED"
    assert made.acknowledged


def test_any_other_failure_is_celerys(app: Celery) -> None:
    made = request(app)
    try:
        raise KeyError
    except KeyError:
        made.on_success((1, ExceptionInfo(), 0.1))
    assert made.acknowledged
    assert app.AsyncResult("t-1").state == "PENDING"  # the tracer stores it


def test_terminating_is_the_messages_own_business(app: Celery) -> None:
    made, message = request(app), Mock()
    made.terminate(Mock(), signal="TERM")  # it has not come to the pool
    made._apply_result = lambda: message
    made.terminate(Mock(), signal="TERM")
    message.terminate.assert_called_once_with()
    assert not made.acknowledged


def test_a_cold_shutdown_ends_no_job(app: Celery) -> None:
    """F10: Celery ends the active messages first; here the pool hands their jobs over."""
    made, message = request(app), Mock()
    made._apply_result = lambda: message
    made.on_accepted(1, 0.0)
    made.cancel(Mock(), emit_retry=False)
    message.terminate.assert_not_called()
    assert not made.acknowledged


def failed(error: Exception) -> ExceptionInfo:
    try:
        raise error
    except Exception:
        return ExceptionInfo()


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (Cancelled("cancelled"), ("task-revoked", {"terminated": True, "signum": None, "expired": False})),
        (Expired("too late"), ("task-expired", {"terminated": True, "signum": None, "expired": True})),
    ],
)
def test_a_job_that_was_cancelled_or_has_expired_is_no_failure_in_flower(
    app: Celery, error: Exception, shown: tuple[str, dict[str, Any]]
) -> None:
    made = request(app)
    made._eventer = Mock(enabled=True)
    made.on_failure(failed(error))
    told = [(each.args[0], {**each.kwargs}) for each in made._eventer.send.call_args_list]
    assert told == [(shown[0], {"uuid": "t-1", **shown[1]})]


def test_another_error_is_one(app: Celery) -> None:
    made = request(app)
    made._eventer = Mock(enabled=True)
    made.on_failure(failed(VramOom("does not fit")))
    assert [each.args[0] for each in made._eventer.send.call_args_list] == ["task-failed"]


def test_the_progress_of_a_messages_jobs_is_told_while_they_run(app: Celery) -> None:
    made = request(app)
    made._eventer = Mock(enabled=True)
    job = Mock(num_tokens_out=17, first_token_ms=1000)
    job.now_ms.return_value = 3000
    made.tell_progress({"a": job})
    assert made._eventer.send.call_args_list == [], "it has not come to the pool yet"
    message = Mock(jobs={"a": None, "b": None})
    made._apply_result = lambda: message
    made.tell_progress({"other": job})
    assert made._eventer.send.call_args_list == []
    made.tell_progress({"a": job})
    [told] = made._eventer.send.call_args_list
    assert told.args == ("task-sent",)
    assert told.kwargs == {
        "uuid": "t-1", "result": "1 of 2 jobs run, 17 tokens so far, 8.0 a second", "sent": None,
    }  # fmt: skip
