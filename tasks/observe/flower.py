"""What Flower and Celery's own tools are shown of a message."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher
from celery.worker import state
from celery.worker.request import Request
from kombu import Producer

from orcd.store.submission import is_well_formed
from tasks.observe.observed_job import ObservedJob

PROGRESS_EVENT = "task-sent"
"""Brings a running task's ``result`` up to date. Its state stays STARTED, as this is what a task is before that; so it
still becomes REVOKED, which no task with a state of our own would."""
EXPIRED_EVENT = "task-expired"
"""Gives a task the state EXPIRED."""
MAX_BUFFERED = 512
"""With so many events of tasks nobody waits any longer."""


def progress(jobs: Sequence[ObservedJob], num_jobs: int) -> str:
    """How far the running ones of a message's jobs are."""
    num_tokens = sum(job.num_tokens_out for job in jobs)
    rate = sum(_tokens_per_s(job) for job in jobs)
    of_many = f"{len(jobs)} of {num_jobs} jobs run, " if num_jobs > 1 else ""
    return f"{of_many}{num_tokens} tokens so far, {rate:.1f} a second"


def _tokens_per_s(job: ObservedJob) -> float:
    passed_ms = job.now_ms() - job.first_token_ms if job.first_token_ms else 0
    return 1000 * (job.num_tokens_out - 1) / passed_ms if passed_ms > 0 else 0.0


class PrivateRequest(Request):  # type: ignore[misc]
    """A message of which nobody is shown more than its task, its well-formed ids, and what kind of error it ended with.

    An inline request has its prompt in its arguments, and the text of an error may name what the sender wrote.
    """

    name: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not is_well_formed(self.name):  # what its sender wants it to be called
            self.name = self.type

    @property
    def argsrepr(self) -> str:
        """Positional arguments, for events and logs."""
        return "()"

    @property
    def kwargsrepr(self) -> str:
        """Keyword arguments, for events and logs."""
        return repr(self._public())

    def info(self, safe: bool = False) -> dict[str, Any]:  # noqa: ARG002  (Celery's name)
        """What ``inspect active`` and its like answer."""
        shown = self.id if is_well_formed(self.id) else ""
        return {**super().info(safe=True), "id": shown, "args": [], "kwargs": self._public()}

    def maybe_expire(self) -> bool:
        """Whether it has expired. Celery keeps the ids of those, for ``inspect revoked``."""
        has_expired = bool(super().maybe_expire())
        if not is_well_formed(self.id):
            state.revoked.discard(self.id)
        return has_expired

    def _public(self) -> dict[str, Any]:
        kwargs = self._kwargs if isinstance(self._kwargs, dict) else {}
        shown: dict[str, Any] = {}
        if is_well_formed(job_id := kwargs.get("job_id")):
            shown["job_id"] = job_id
        if isinstance(job_ids := kwargs.get("job_ids"), list):
            shown["job_ids"] = [job_id for job_id in job_ids if is_well_formed(job_id)]
        return shown


class PrivateDispatcher(EventDispatcher):  # type: ignore[misc]
    """Tells Flower what happens to tasks, but nothing that their senders have made up.

    Flower hears nothing of a task without a well-formed id, and no error's text, which is kept with the result.
    Events of tasks wait for the worker's next `flush`: to send them costs as much as to make a hundred. Nobody flushes
    any more when the worker leaves.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"buffer_limit": MAX_BUFFERED})

    def send(self, type: str, **fields: Any) -> None:
        """Send an event."""
        if "uuid" in fields and not is_well_formed(fields["uuid"]):
            return
        for name in ("root_id", "parent_id"):
            if fields.get(name) is not None and not is_well_formed(fields[name]):
                fields[name] = None
        if "exception" in fields:
            fields |= {"exception": fields["exception"].partition("(")[0], "traceback": None}
        super().send(type, **fields)
        if any(told is not None and told is not False for told in (state.should_stop, state.should_terminate)):
            self.flush()

    def enable(self) -> None:
        """Begin to send, with a producer of our own."""
        super().enable()
        self.producer = _EventProducer(
            self.channel or self.connection, exchange=self.exchange, serializer=self.serializer, auto_declare=False
        )


class _EventProducer(Producer):  # type: ignore[misc]
    """Encodes the JSON of many events in a tenth of the time."""

    def publish(self, body: Any, *args: Any, **kwargs: Any) -> Any:
        """As its base class."""
        with suppress(TypeError, ValueError):  # what only kombu's encoder knows
            body = msgspec.json.encode(body)
            kwargs |= {"content_type": "application/json", "content_encoding": "utf-8"}
        return super().publish(body, *args, **kwargs)


class PrivateEvents(Events):  # type: ignore[misc]
    """Celery's events, sent by this dispatcher."""

    dispatcher_cls = "tasks.observe.flower:PrivateDispatcher"
