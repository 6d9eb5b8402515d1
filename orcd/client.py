"""The client library: submit jobs, stream and follow their tokens, wait for results, cancel.

::

    with Client() as client:
        for text in client.chat("Write a haiku about rain.", max_tokens=64):
            print(text, end="")

``messages=`` and `Client.chat` are chat: they go through the model's chat template. ``prompt=`` is raw text that the
model continues.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Unpack

import redis

from orcd import result as results
from orcd.errors import Cancelled, InvalidRequest
from orcd.events import Error, Event, Token, encode_event, state_after
from orcd.monitoring.job_list import JobList
from orcd.monitoring.queue_tally import QueueTally
from orcd.monitoring.wait_estimate import WaitCount
from orcd.request import Request
from orcd.result import Result
from orcd.settings import ClientSettings, read_environment
from orcd.status import JobSummary, Look, QueueStatus, Status, WaitEstimate, WorkerStatus, check_state
from orcd.store import schema
from orcd.store.commands.job_reading import pipeline_of_page, pipeline_of_statuses, read_statuses
from orcd.store.commands.redis_script import RedisScript
from orcd.store.commands.script_pipeline import ScriptPipeline
from orcd.store.commands.subscription_pool import SubscriptionPool
from orcd.store.enqueue import Publisher
from orcd.store.event_stream import EventStream
from orcd.store.redis_connection import connect, redis_errors
from orcd.store.submission import (
    Lifetime,
    Submission,
    SubmissionFields,
    add_stored,
    check_job_id,
    messages_left,
    prepare_many,
    submit_arguments,
)
from orcd.store.token_log import usable

__all__ = ["Client"]

SCRIPTS = ("submit", "look", "cancel", "workers", "queues", "jobs", "ahead")
RECONNECT_S = 30.0
"""How long a stream waits for a Redis that went away."""


class Client:
    """Talks to one Redis, by default the one in ``ORCD_REDIS_URL``. Close it, or use it in a with block.

    Thread-safe. A process forked from the one that made it (Django, Celery's prefork pool) may go on using it: it
    opens connections of its own.

    Every method raises `RedisUnavailable` when Redis cannot be reached, `InvalidRequest` for a job id that is malformed
    or unknown, and `LogDamaged` for a job that cannot be read in Redis any more. ``job_ttl_s`` is how long a submitted
    job is kept after its end; ``reconnect_s`` how long streams and waits put up with a Redis that has gone away.
    """

    def __init__(
        self, redis_url: str | None = None, *, job_ttl_s: int | None = None, reconnect_s: float = RECONNECT_S
    ) -> None:
        self._settings = read_environment(ClientSettings, redis_url=redis_url, job_ttl_s=job_ttl_s)
        self._lifetime = Lifetime(self._settings.job_ttl_s, self._settings.queue_limit_s)
        self._reconnect_s = reconnect_s
        self._redis: Any = connect(self._settings)
        self._prefix = prefix = self._settings.key_prefix
        self._scripts = {name: RedisScript(self._redis, schema.script(name, prefix)) for name in SCRIPTS}
        self._subscriptions = SubscriptionPool(self._redis)
        self._publisher = Publisher(self._settings)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()
        self._publisher.close()

    def submit(self, *, job_id: str | None = None, fail_fast: bool = False, **fields: Unpack[SubmissionFields]) -> str:
        """Queue one job and return its id; ``fields`` are those of `orcd.request.Request`.

        A job that exists already is left alone, so a caller that chooses its ids, or gives an ``idempotency_key``, may
        submit again; raises `Conflict` if it is of another request. Once this returns the job is safe: if its message
        could not be sent (a warning is logged), a worker's reaper sends it later.

        Raises `QueueFull` if too many jobs wait, and with ``fail_fast`` `ModelNotServed` if no worker serves the model:
        then nothing was stored.
        """
        stored: list[str] = []
        self._write([Submission.prepare(fields, job_id, self._lifetime, fail_fast=fail_fast)], stored)
        return stored[0]

    def submit_many(
        self,
        requests: Sequence[Mapping[str, Any] | Request],
        job_ids: Sequence[str] | None = None,
        *,
        fail_fast: bool = False,
    ) -> list[str]:
        """Queue many jobs, by their fields or as requests; nothing is written unless all are valid.

        If Redis goes away in between, some may have been written: give ``job_ids``, or each request an
        ``idempotency_key``, to be able to submit again. Raises `Conflict` if one of these is another request's, and
        with ``fail_fast`` `ModelNotServed` if no worker serves the model of one; the others are queued all the same, up
        to 256 at a time. So it is with `QueueFull`, which says which jobs were stored.
        """
        stored: list[str] = []
        for batch in prepare_many(requests, job_ids, self._lifetime, fail_fast=fail_fast):
            self._write(batch, stored)
        return stored

    def events(self, job_id: str, from_token: int = 0, timeout: float | None = None) -> Generator[Event, None, None]:
        """Yield a job's events from the start, each once, up to and with the terminal one (`End` or `Error`).

        Tokens up to index ``from_token`` of every choice are left out. A cut connection is made anew and nothing is
        lost. Raises TimeoutError if the job has not ended after ``timeout`` seconds.
        """
        return self._follow(EventStream(check_job_id(job_id), from_token, timeout, self._reconnect_s))

    def stream(self, *, fail_fast: bool = False, **fields: Unpack[SubmissionFields]) -> Generator[str, None, None]:
        """Queue a job and yield its text as it is generated; raises the job's error as an exception.

        Closing the iterator early leaves the job running, unless ``on_disconnect="cancel"`` was given. ``fail_fast`` is
        that of `submit`.
        """
        check_one_choice(fields)
        job_id = self.submit(fail_fast=fail_fast, **fields)
        return self._text(job_id, cancels=fields.get("on_disconnect") == "cancel")

    def chat(
        self, text: str, *, fail_fast: bool = False, **fields: Unpack[SubmissionFields]
    ) -> Generator[str, None, None]:
        """`stream` with one message of a user: yield the answer to ``text`` as it is generated."""
        return self.stream(fail_fast=fail_fast, **with_message(text, fields))

    def result(self, job_id: str, timeout: float | None = None) -> Result:
        """Wait for the job's end; a failed job's result has ``error``. Raises TimeoutError after that many seconds."""
        return results.fold(job_id, self.events(job_id, timeout=timeout))

    def status(self, job_id: str) -> Status:
        """Where the job stands now."""
        return self.statuses([job_id])[0]

    def statuses(self, job_ids: Sequence[str]) -> list[Status]:
        """Where many jobs stand now, in their order; one round trip."""
        pipeline = pipeline_of_statuses(self._scripts["look"], job_ids, self._prefix)
        with redis_errors(self._settings):
            return read_statuses(job_ids, pipeline.execute(self._redis, raise_on_error=False))

    def cancel(self, job_id: str) -> str:
        """Cancel a job and return its state: ``cancelled`` if it waited, ``running`` if its worker was told to stop."""
        arguments = cancellation(check_job_id(job_id))
        with redis_errors(self._settings):
            return state_of(job_id, self._scripts["cancel"]([], arguments))

    def workers(self) -> list[WorkerStatus]:
        """The workers that are alive, by name. One that dies counts for another minute."""
        with redis_errors(self._settings):
            return WorkerStatus.read_all(self._scripts["workers"]([], []))

    def queues(self) -> list[QueueStatus]:
        """The queues that hold something or that a worker serves, by name.

        Looks at each job that waits or runs, 200 in a call of about a millisecond, and at the names of all keys.
        """
        tally = QueueTally()
        with redis_errors(self._settings):
            while tally.arguments:
                tally.add(self._scripts["queues"]([], tally.arguments))
        return tally.queues(self.workers())

    def jobs(self, state: str | None = None, model: str | None = None, limit: int = 1000) -> list[JobSummary]:
        """Jobs in a ``state``, by default those that run and then those that wait, at most ``limit`` of each state.

        Those that were submitted first come first, of ended ones those that ended last. With ``model`` only jobs that
        ask for it or run on it. Ended jobs are found by looking at the names of all keys. Raises `InvalidRequest`.
        """
        found = JobList(state, model, limit)
        with redis_errors(self._settings):
            while found.arguments:
                found.add(self._scripts["jobs"]([], found.arguments))
        return found.jobs()

    def wait_estimate(self, job_id: str) -> WaitEstimate:
        """What a job waits for, and about how long. Looks at each job that waits, 200 in a call."""
        status, count = self.status(job_id), WaitCount(job_id)
        with redis_errors(self._settings):
            while count.arguments:
                count.add(self._scripts["ahead"]([], count.arguments))
        return count.estimate(status, self.workers())

    def _write(self, batch: Sequence[Submission], stored: list[str]) -> None:
        pipeline = ScriptPipeline.of(self._scripts["submit"], submit_arguments(batch, self._publisher))
        with redis_errors(self._settings):
            answers = pipeline.execute(self._redis)
            self._publisher.announce(messages_left(batch, answers))
        add_stored(stored, batch, answers)

    def _follow(self, stream: EventStream) -> Generator[Event, None, None]:
        with redis_errors(self._settings):
            while not stream.ended:
                try:
                    yield from self._subscribe(stream)
                except redis.RedisError as error:
                    time.sleep(stream.backoff_s(error))

    def _subscribe(self, stream: EventStream) -> Generator[Event, None, None]:
        with self._subscriptions.subscription() as channel:
            channel.subscribe(schema.events_channel(stream.job_id, self._prefix))
            while not stream.ended:
                events = stream.received(channel.get_message(timeout=stream.wait_s()))
                yield from self._replay(stream) if events is None else events

    def _replay(self, stream: EventStream) -> Generator[Event, None, None]:
        start = stream.log_start
        while start:
            pipeline = pipeline_of_page(self._scripts["look"], stream.job_id, start, self._prefix)
            look, entries = pipeline.execute(self._redis, raise_on_error=False)
            events, start = stream.replayed(start, Look.read(stream.job_id, look), usable(entries))
            yield from events

    def _text(self, job_id: str, *, cancels: bool) -> Generator[str, None, None]:
        ended = False
        try:
            for event in self.events(job_id):
                ended = bool(state_after(event))
                yield from text_of(event)
        finally:
            if cancels and not ended:
                self.cancel(job_id)


def with_message(text: str, fields: SubmissionFields) -> SubmissionFields:
    """The request's fields with ``text`` as the one message of a user. Raises `InvalidRequest` if they have others."""
    if fields.get("messages") is not None:
        raise InvalidRequest("messages: chat() makes them of its text; use stream(messages=...) for a conversation")
    return {**fields, "messages": [{"role": "user", "content": text}]}


def check_one_choice(fields: Mapping[str, Any]) -> None:
    """Raises `InvalidRequest` if a text stream of several choices is asked for."""
    if fields.get("n", 1) != 1:
        raise InvalidRequest("n: a text stream has one choice; submit the job and read its events for more")


def cancellation(job_id: str) -> list[Any]:
    """Arguments of the cancel script."""
    error = Error(Cancelled.code, "cancelled while it was queued", Cancelled.retriable)
    return [job_id, encode_event(error), state_after(error), 0]


def state_of(job_id: str, answer: bytes) -> str:
    """The cancel script's answer. Raises `InvalidRequest` if the job is unknown, `LogDamaged`."""
    check_state(job_id, answer)
    return answer.decode()


def text_of(event: Event) -> Iterator[str]:
    """The answer's text in an event, if it has any. Raises the exception of an `Error`."""
    match event:
        case Token(t=text) if text:
            yield text
        case Error():
            raise results.exception(event)
