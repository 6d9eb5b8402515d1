"""A Celery message between its delivery to the pool and its answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import states
from celery.exceptions import Ignore, Reject, TaskRevokedError
from kombu.serialization import loads
from msgspec.structs import replace
from redis import RedisError

from orcd.errors import Conflict, InvalidRequest, OrcdError
from orcd.request import Request
from orcd.result import Result, exception
from orcd.store.enqueue import GENERATE, Message, RecordedMessage, queue_name, tenant_digest
from orcd.store.job_store import Arrival
from orcd.store.submission import trace_parent
from tasks.celery_ext.request import REVOKED
from tasks.celery_ext.result_backend import NotStored
from tasks.celery_ext.tasks import JobTask, OnFailure, trace
from tasks.dispatch.delivery import Answer, Delivery, Fenced, Outcome, Repeated, Unknown

LINK_IDS = uuid.UUID("5f2b7f0e-6a57-5c0c-9a0e-0d4c0f6c1a11")
"""What the ids of linked tasks are derived from."""
CANVAS = ("callbacks", "errbacks", "chain", "chord")
"""What follows a task's own arguments in a message's body: what is done when the task has ended."""
NOT_KEPT = frozenset(
    {"args", "argsrepr", "correlation_id", "delivery_info", "eta", "headers", "hostname", "id", "kwargs", "kwargsrepr"}
    | {"lang", "loglevel", "properties", "reply_to", "task", "taskset", "utc", REVOKED, *CANVAS}
)
"""Entries of Celery's request dictionary that are kept elsewhere, hold arguments, or concern one delivery only."""
PLAIN = frozenset({"origin", "root_id"})
"""Headers that any message has, and that say nothing of which the job's record does not know."""

Done = Callable[["InFlightMessage", str, Answer], None]


@dataclass(slots=True, eq=False, weakref_slot=True)
class InFlightMessage:
    """One Celery message in flight; Celery keeps a weak reference to it for ``revoke(terminate=True)``.

    ``target`` is Celery's tracer, ``request`` its dictionary of headers, and ``embed`` what follows the task's own
    arguments in the body. ``jobs`` has the request of each job that came inside the message and None for the others,
    ``records`` what is to be kept of the message, by job. ``ending`` says why it must not run: ``revoked``,
    ``expired`` or ``terminated``. Jobs in ``unknown`` were not known to anybody. What ``followers`` ask for once the
    jobs have ended is not what this message asks for.
    """

    task_id: str
    task: JobTask
    target: Callable[..., Any]
    request: dict[str, Any]
    callbacks: list[Callable[[Any], None]]
    on_terminate: Callable[[InFlightMessage], None]
    embed: dict[str, Any] = field(default_factory=dict)
    jobs: dict[str, Request | None] = field(default_factory=dict)
    records: dict[str, RecordedMessage] = field(default_factory=dict)
    time_limit_s: float | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    num_waiting: int = 0
    looks_again: bool = False
    unknown: set[str] = field(default_factory=set)
    fenced: set[str] = field(default_factory=set)
    followers: list[InFlightMessage] = field(default_factory=list)
    error: OrcdError | None = None
    answer: Any = None
    ending: str | None = None
    accepted_at: float = field(default_factory=time.monotonic)

    @property
    def is_doorbell(self) -> bool:
        """Whether it only names a job of its own id, which has a record."""
        return self.jobs == {self.task_id: None}

    @property
    def is_lost(self) -> bool:
        """Whether another worker has one of its jobs, or nobody."""
        return self.error is None and None in self.outcomes.values()

    @property
    def has_result(self) -> bool:
        """Whether the tracer has stored a result under the message's id: not for a sender that wants none."""
        if self.ending or self.request.get("ignore_result"):
            return False
        failed, value, _ = self.answer
        return not (failed and isinstance(value.exception, Ignore | Reject))

    def terminate(self, _signal: int | None = None) -> None:
        """End the jobs; the message is then answered like any other."""
        self.on_terminate(self)

    def read(self, body: Sequence[Any], limits_s: Sequence[float | None]) -> None:
        """Take in what the message says; what cannot be read is its error.

        ``body`` is a body, its content type and its encoding. Linked tasks get ids, the same ones at every delivery.
        """
        self.ending = self.request.get(REVOKED)
        encoded, content_type, content_encoding = body
        try:
            args, kwargs, embed = loads(encoded, content_type, content_encoding) if content_type else encoded
            _set_link_ids(embed or {}, self.task_id)
            self.embed = {kind: embed[kind] for kind in CANVAS if embed and embed.get(kind)}
            self.time_limit_s = min((limit for limit in limits_s if limit), default=None)
            self.jobs = self.task.jobs(self.task_id, args, kwargs)
            self.records = self._records()
        except OrcdError as error:
            self.error = error
        except Exception as error:  # bytes from outside: they concern this message only
            self.error = InvalidRequest(f"the message cannot be read ({type(error).__name__})")
        self.outcomes = dict.fromkeys(self.jobs)

    def lacks_request_of(self, repetition: InFlightMessage) -> bool:
        """Whether another message of the id brings the request of a job that this one only names."""
        named = [job_id for job_id, request in repetition.jobs.items() if request is not None and job_id in self.jobs]
        return any(self.jobs[job_id] is None for job_id in named)

    def adopt(self, repetition: InFlightMessage) -> bool:
        """Answer another delivery of this message with it; one that says something else is answered after it.

        That is of a sender who was told of an error in the middle of a canvas, and began it again, with a new group.
        Redis may have forgotten the jobs: the requests of a repetition may be the only ones left. False for one whose
        request is another than ours: its sender must not be given what we answer.
        """
        inline = {job_id: request for job_id, request in repetition.jobs.items() if request is not None}
        if any(self.jobs.get(job_id) not in (None, request) for job_id, request in inline.items()):
            return False
        self.jobs |= {job_id: request for job_id, request in inline.items() if job_id in self.jobs}
        self.looks_again = True
        if repetition.error is None and (self.error is not None or repetition._asks_for() != self._asks_for()):
            self.followers.append(repetition)
        else:
            self.callbacks += repetition.callbacks
        return True

    def has_outcome(self, job_id: str, outcome: Answer) -> bool:
        """Note what became of a job; True if that was the last one that was waited for.

        One that is fenced is to be claimed again: Redis may have come back from an older snapshot, with the job in the
        queue or without it, and this message may be all that is left to tell of it. So is one that was unknown, if its
        request has come meanwhile.
        """
        if isinstance(outcome, Fenced):
            self.fenced.add(job_id)
            outcome, self.looks_again = None, True
        elif isinstance(outcome, Unknown) and self.jobs[job_id] is not None:
            outcome, self.looks_again = None, True
        elif isinstance(outcome, Unknown) and job_id in self.fenced:
            outcome = None  # there is no such job any more, also if it was deleted: nobody waits for a result
        elif isinstance(outcome, Conflict):
            self.records.pop(job_id, None)  # none was written down; what is there may be another message's of the id
        elif isinstance(outcome, Unknown):
            self.unknown.add(job_id)
            outcome = InvalidRequest(f"job {job_id} is unknown or has expired; submit it again")
        self.outcomes[job_id] = outcome
        self.num_waiting -= 1
        return self.num_waiting == 0

    def misrouted(self, model: str) -> list[Message]:
        """What to publish for the jobs that came inside the message and ask for another model."""
        found = []
        for job_id, inline in self.jobs.items():
            if inline is not None and inline.model not in (None, model):
                own = tuple(record for record in (self.records.get(job_id),) if record and record.task_id == job_id)
                queue, tenant = queue_name(inline.model), tenant_digest(inline.tenant)
                found.append(Message(job_id, queue, inline.priority, recorded=own, tenant=tenant))
        return found

    def arrivals(self) -> list[Arrival]:
        """What is to be written down before anything else happens."""
        trace = trace_parent(self.request.get("traceparent"))
        return [Arrival(job_id, inline, self.records.get(job_id), trace) for job_id, inline in self.jobs.items()]

    def deliveries(self, done: Done) -> Iterator[Delivery]:
        """The jobs without an outcome, to be claimed.

        A second message of a job's own id has nothing to add; one of another id is waited for by somebody.
        """
        for job_id in [job_id for job_id, outcome in self.outcomes.items() if outcome is None]:
            yield Delivery(
                job_id,
                self.jobs[job_id],
                lambda outcome, job_id=job_id: done(self, job_id, outcome),  # type: ignore[misc]
                waits=job_id != self.task_id,
                message=self.records.get(job_id),
                time_limit_s=self.time_limit_s,
                trace=trace_parent(self.request.get("traceparent")),
            )

    def call_back(self, on_failure: OnFailure) -> None:
        """Tell all who wait for the ``answer``. May be begun again where it stopped.

        Raises `redis.RedisError` and `NotStored`.
        """
        while self.callbacks:
            try:
                self.callbacks[0](self.answer)
            except (RedisError, NotStored):
                raise
            except Exception as error:  # of one delivery: it would be no better if it was told again
                on_failure("finish", error)
            del self.callbacks[0]

    def store_results(self, backend: Any, on_failure: OnFailure) -> None:
        """Store what became of the message, which is its ``answer`` from then on, and of jobs of other ids.

        Raises `NotStored`.
        """
        self.answer = self.trace(on_failure)
        for job_id, found in self.results():
            error = found if isinstance(found, OrcdError) else exception(found.error) if found.error else None
            try:
                backend.store_result(job_id, error or found, states.FAILURE if error else states.SUCCESS)
            except NotStored:
                raise
            except Exception as failure:  # the key is of a wrong type
                on_failure("finish", failure)

    def trace(self, on_failure: OnFailure) -> Any:
        """Run Celery's tracer on the outcomes, which stores the result and follows the links; returns its answer.

        Raises `NotStored`.
        """
        if self._was_ended():
            try:
                raise TaskRevokedError(self.ending)
            except TaskRevokedError:  # `Request.on_failure` knows it
                return 1, ExceptionInfo(), time.monotonic() - self.accepted_at
        # The body of a message that was decoded has no content type; in place of the task's arguments is the outcome.
        body: Any = (self.error or self.outcomes,), {}, self.embed
        args = (self.task.name, self.task_id, self.request, body, None, None)
        return trace(self.target, args, self.accepted_at, on_failure)

    def results(self) -> Iterator[tuple[str, Result | OrcdError]]:
        """What became of the jobs that have another id than the message: their results are stored beside its own."""
        for job_id, outcome in self.outcomes.items():
            found = outcome.result if isinstance(outcome, Repeated) else outcome
            is_of_another = job_id in self.unknown or isinstance(found, Conflict)
            if found is not None and job_id != self.task_id and not is_of_another:
                yield job_id, found

    def _was_ended(self) -> bool:
        """Whether a job ended because the message was revoked or had expired."""
        results = [outcome.result if isinstance(outcome, Repeated) else outcome for outcome in self.outcomes.values()]
        errors = [result.error for result in results if isinstance(result, Result)]
        return self.ending is not None and any(error and error.code in ("CANCELLED", "EXPIRED") for error in errors)

    def _asks_for(self) -> dict[str, RecordedMessage]:
        # One that is sent again may be more urgent, or in another queue: it had waited for long, or lost its worker.
        return {job_id: replace(record, queue="", priority=0) for job_id, record in self.records.items()}

    def _records(self) -> dict[str, RecordedMessage]:
        """What is kept: the message with its last job, as those of a chunk begin in order; with the others its limits.

        Nothing where the plain message of a job says as much.
        """
        headers = {name: value for name, value in self.request.items() if name not in NOT_KEPT and _says(value)}
        job_ids = list(self.jobs)
        says_more = headers.keys() - PLAIN or headers.get("root_id", self.task_id) != self.task_id
        if job_ids == [self.task_id] and not self.embed and not says_more:
            return {}
        queue, priority = self._queue(), (self.request.get("delivery_info") or {}).get("priority") or 0
        name, kwargs = self.task.current_name, self.task.reference(job_ids)
        records = {job_ids[-1]: RecordedMessage(self.task_id, name, queue, priority, headers, [], kwargs, self.embed)}
        if "timelimit" in headers:
            limits = {"timelimit": headers["timelimit"]}
            for job_id in job_ids[:-1]:
                records[job_id] = RecordedMessage(job_id, GENERATE, queue, priority, limits, [], {"job_id": job_id}, {})
        return records

    def _queue(self) -> str:
        """Where the message is to be sent again: for a request to its model's queue, else to where it came from."""
        inline = self.jobs.get(self.task_id)
        if inline is not None:
            return queue_name(inline.model)
        sent_to = (self.request.get("delivery_info") or {}).get("routing_key")
        return str(sent_to) if sent_to in self.task.app.amqp.queues.consume_from else queue_name(None)


def _says(value: Any) -> bool:
    """Whether a header says anything: Celery writes all of its own, most of them empty."""
    return bool(value) and value not in ([None, None], (None, None))


def _set_link_ids(embed: dict[str, Any], task_id: str) -> None:
    for kind in ("callbacks", "errbacks"):
        for number, signature in enumerate(embed.get(kind) or []):
            if not signature.get("subtask_type"):
                link_id = str(uuid.uuid5(LINK_IDS, f"{task_id}/{kind}/{number}"))
                signature["options"] = {"task_id": link_id} | (signature.get("options") or {})
