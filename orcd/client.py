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
from itertools import islice
from types import TracebackType
from typing import Any, Unpack

import redis
from redis.retry import Retry

from orcd import result as results
from orcd.errors import Cancelled, InvalidRequest
from orcd.events import Error, Event, Token, encode_event, state_after
from orcd.request import RequestFields
from orcd.result import Result
from orcd.settings import ClientSettings, read_environment
from orcd.status import FIELDS, Status, WorkerStatus, unknown_job
from orcd.store import schema
from orcd.store.enqueue import Publisher
from orcd.store.event_stream import PAGE_ENTRIES, EventStream
from orcd.store.redis_connection import NUM_RETRIES, RETRY_BACKOFF, connect, redis_errors
from orcd.store.submission import Submission, check_job_id, created_messages, prepare_many

__all__ = ["Client"]

RECONNECT_S = 30.0
"""How long a stream waits for a Redis that went away."""


class Client:
    """Talks to one Redis, by default the one in ``ORCD_REDIS_URL``. Close it, or use it in a with block.

    Thread-safe. A process forked from the one that made it (Django, Celery's prefork pool) may go on using it: it
    opens connections of its own.

    Every method raises `RedisUnavailable` when Redis cannot be reached, and `InvalidRequest` for a job id that is
    malformed or unknown. ``job_ttl_s`` is how long a submitted job is kept; ``reconnect_s`` how long streams and waits
    put up with a Redis that has gone away.
    """

    def __init__(
        self, redis_url: str | None = None, *, job_ttl_s: int | None = None, reconnect_s: float = RECONNECT_S
    ) -> None:
        self._settings = read_environment(ClientSettings, redis_url=redis_url, job_ttl_s=job_ttl_s)
        self._reconnect_s = reconnect_s
        retry = Retry(RETRY_BACKOFF, NUM_RETRIES)
        self._redis = connect(redis.Redis.from_url, self._settings, retry)
        self._submit_script = self._redis.register_script(schema.script("submit"))
        self._cancel_script = self._redis.register_script(schema.script("cancel"))
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

    def submit(self, *, job_id: str | None = None, **fields: Unpack[RequestFields]) -> str:
        """Queue one job and return its id; ``fields`` are those of `orcd.request.Request`.

        An id that exists already is left alone, so a caller that chooses its ids may submit again. Once this returns
        the job is safe: if its message could not be sent (a warning is logged), a worker's reaper sends it later.
        """
        submission = Submission.prepare(fields, job_id, self._settings.job_ttl_s)
        return self._write([submission])[0]

    def submit_many(self, requests: Sequence[Mapping[str, Any]], job_ids: Sequence[str] | None = None) -> list[str]:
        """Queue many jobs; nothing is written unless all are valid.

        If Redis goes away in between, some may have been written: give ``job_ids`` to be able to submit again.
        """
        batches = prepare_many(requests, job_ids, self._settings.job_ttl_s)
        return [job_id for batch in batches for job_id in self._write(batch)]

    def events(self, job_id: str, from_token: int = 0, timeout: float | None = None) -> Generator[Event, None, None]:
        """Yield a job's events from the start, each once, up to and with the terminal one (`End` or `Error`).

        Tokens up to index ``from_token`` of every choice are left out. A cut connection is made anew and nothing is
        lost. Raises TimeoutError if the job has not ended after ``timeout`` seconds.
        """
        return self._follow(EventStream(check_job_id(job_id), from_token, timeout, self._reconnect_s))

    def stream(self, **fields: Unpack[RequestFields]) -> Generator[str, None, None]:
        """Queue a job and yield its text as it is generated; raises the job's error as an exception.

        Closing the iterator early leaves the job running, unless ``on_disconnect="cancel"`` was given.
        """
        check_one_choice(fields)
        job_id = self.submit(**fields)
        return self._text(job_id, cancels=fields.get("on_disconnect") == "cancel")

    def chat(self, text: str, **fields: Unpack[RequestFields]) -> Generator[str, None, None]:
        """`stream` with one message of a user: yield the answer to ``text`` as it is generated."""
        return self.stream(**with_message(text, fields))

    def result(self, job_id: str, timeout: float | None = None) -> Result:
        """Wait for the job's end; a failed job's result has ``error``. Raises TimeoutError after that many seconds."""
        return results.fold(job_id, self.events(job_id, timeout=timeout))

    def status(self, job_id: str) -> Status:
        """Where the job stands now."""
        return self.statuses([job_id])[0]

    def statuses(self, job_ids: Sequence[str]) -> list[Status]:
        """Where many jobs stand now, in their order; one round trip."""
        with redis_errors(self._settings), self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hmget(schema.job_key(check_job_id(job_id)), FIELDS)
                pipeline.zrank(schema.QUEUED, job_id)
                pipeline.xrevrange(schema.log_key(job_id), count=1)
            answers = iter(pipeline.execute())
            return [Status.read(job_id, *islice(answers, 3)) for job_id in job_ids]

    def cancel(self, job_id: str) -> str:
        """Cancel a job and return its state: ``cancelled`` if it waited, ``running`` if its worker was told to stop."""
        keys, arguments = cancellation(check_job_id(job_id), self._settings.job_ttl_s)
        with redis_errors(self._settings):
            return state_of(job_id, self._cancel_script(keys, arguments))

    def workers(self) -> list[WorkerStatus]:
        """The last heartbeats of the workers that are alive."""
        with redis_errors(self._settings), self._redis.pipeline(transaction=False) as pipeline:
            seen = self._redis.zrange(schema.WORKERS, 0, -1, withscores=True)
            for name, _ in seen:
                pipeline.hgetall(schema.worker_key(name.decode()))
            return WorkerStatus.read_all(seen, pipeline.execute())

    def _write(self, batch: Sequence[Submission]) -> list[str]:
        with redis_errors(self._settings), self._redis.pipeline(transaction=False) as pipeline:
            for submission in batch:
                self._submit_script(submission.keys, submission.arguments, client=pipeline)
            self._publisher.announce(created_messages(batch, pipeline.execute()))
        return [submission.message.job_id for submission in batch]

    def _follow(self, stream: EventStream) -> Generator[Event, None, None]:
        with redis_errors(self._settings):
            yield from self._replay(stream)  # first, so that an ended job needs no subscription
            while not stream.ended:
                try:
                    yield from self._subscribe(stream)
                except (redis.ConnectionError, redis.TimeoutError) as error:
                    time.sleep(stream.backoff_s(error))

    def _subscribe(self, stream: EventStream) -> Generator[Event, None, None]:
        with self._redis.pubsub() as channel:
            channel.subscribe(schema.events_channel(stream.job_id))
            while not stream.ended:
                events = stream.received(channel.get_message(timeout=stream.patience_s()))
                yield from self._replay(stream) if events is None else events

    def _replay(self, stream: EventStream) -> Generator[Event, None, None]:
        start = stream.log_start
        while start:
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.hget(schema.job_key(stream.job_id), "state")
                pipeline.zrank(schema.QUEUED, stream.job_id)
                pipeline.xrange(schema.log_key(stream.job_id), min=start, count=PAGE_ENTRIES)
                state, rank, entries = pipeline.execute()
            yield from stream.replayed(state, rank, entries)
            start = next_page(entries)

    def _text(self, job_id: str, *, cancels: bool) -> Generator[str, None, None]:
        ended = False
        try:
            for event in self.events(job_id):
                ended = bool(state_after(event))
                yield from text_of(event)
        finally:
            if cancels and not ended:
                self.cancel(job_id)


def with_message(text: str, fields: RequestFields) -> RequestFields:
    """The request's fields with ``text`` as the one message of a user. Raises `InvalidRequest` if they have others."""
    if fields.get("messages") is not None:
        raise InvalidRequest("messages: chat() makes them of its text; use stream(messages=...) for a conversation")
    return {**fields, "messages": [{"role": "user", "content": text}]}


def check_one_choice(fields: Mapping[str, Any]) -> None:
    """Raises `InvalidRequest` if a text stream of several choices is asked for."""
    if fields.get("n", 1) != 1:
        raise InvalidRequest("n: a text stream has one choice; submit the job and read its events for more")


def cancellation(job_id: str, ttl_s: int) -> tuple[list[str], list[Any]]:
    """Keys and arguments of the cancel script."""
    error = Error(Cancelled.code, "cancelled while it was queued", Cancelled.retriable)
    keys = [schema.job_key(job_id), schema.log_key(job_id), schema.QUEUED]
    return keys, [job_id, encode_event(error), ttl_s]


def state_of(job_id: str, answer: bytes) -> str:
    """The cancel script's answer. Raises `InvalidRequest` if the job is unknown."""
    if not answer:
        raise unknown_job(job_id)
    return answer.decode()


def next_page(entries: Sequence[tuple[bytes, Any]]) -> str:
    """Where the page of the log after ``entries`` starts; '' if they were the last."""
    return "(" + entries[-1][0].decode() if len(entries) == PAGE_ENTRIES else ""


def text_of(event: Event) -> Iterator[str]:
    """The answer's text in an event, if it has any. Raises the exception of an `Error`."""
    match event:
        case Token(t=text) if text:
            yield text
        case Error():
            raise results.exception(event)
