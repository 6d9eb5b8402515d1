"""The client library for asyncio: `AsyncClient` has the methods of `orcd.client.Client`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing
from types import TracebackType
from typing import Any, Unpack

import redis

from orcd.client import (
    RECONNECT_S,
    SCRIPTS,
    cancellation,
    check_one_choice,
    state_of,
    text_of,
    with_message,
)
from orcd.errors import InvalidRequest
from orcd.events import Event, state_after
from orcd.monitoring.job_list import JobList
from orcd.monitoring.queue_tally import QueueTally
from orcd.monitoring.wait_estimate import WaitCount
from orcd.request import Request
from orcd.result import Result, ResultBuilder
from orcd.settings import ClientSettings, read_environment
from orcd.status import JobSummary, Look, QueueStatus, Status, WaitEstimate, WorkerStatus
from orcd.store import schema
from orcd.store.commands.job_reading import pipeline_of_page, pipeline_of_statuses, read_statuses
from orcd.store.commands.redis_script import AsyncRedisScript
from orcd.store.commands.script_pipeline import ScriptPipeline
from orcd.store.commands.subscription_pool import SubscriptionPool
from orcd.store.commands.timed_redis import answer_in_time
from orcd.store.enqueue import Publisher
from orcd.store.event_stream import EventStream
from orcd.store.redis_connection import connect_async, redis_errors
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

__all__ = ["AsyncClient"]


class AsyncClient:
    """`orcd.client.Client` for one event loop: same methods, arguments and errors. Use it in an async with block.

    Its connections belong to the loop on which it is used first; on another one (that of a second ``asyncio.run``)
    all methods but `close` raise `InvalidRequest`.

    Close an iterator that is left early (``contextlib.aclosing``), so that its connection is given back at once.
    """

    def __init__(
        self, redis_url: str | None = None, *, job_ttl_s: int | None = None, reconnect_s: float = RECONNECT_S
    ) -> None:
        self._settings = read_environment(ClientSettings, redis_url=redis_url, job_ttl_s=job_ttl_s)
        self._lifetime = Lifetime(self._settings.job_ttl_s, self._settings.queue_limit_s)
        self._reconnect_s = reconnect_s
        self._redis: Any = connect_async(self._settings)
        self._prefix = prefix = self._settings.key_prefix
        self._scripts = {name: AsyncRedisScript(self._redis, schema.script(name, prefix)) for name in SCRIPTS}
        self._subscriptions = SubscriptionPool(self._redis)
        self._publisher = Publisher(self._settings)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connections back; those of an event loop that has ended went with it."""
        if self._loop in (None, asyncio.get_running_loop()):
            await self._redis.aclose()
            self._loop = None
        self._publisher.close()

    async def submit(
        self, *, job_id: str | None = None, fail_fast: bool = False, **fields: Unpack[SubmissionFields]
    ) -> str:
        """See `Client.submit`."""
        stored: list[str] = []
        await self._write([Submission.prepare(fields, job_id, self._lifetime, fail_fast=fail_fast)], stored)
        return stored[0]

    async def submit_many(
        self,
        requests: Sequence[Mapping[str, Any] | Request],
        job_ids: Sequence[str] | None = None,
        *,
        fail_fast: bool = False,
    ) -> list[str]:
        """See `Client.submit_many`."""
        stored: list[str] = []
        for batch in prepare_many(requests, job_ids, self._lifetime, fail_fast=fail_fast):
            await self._write(batch, stored)
        return stored

    def events(self, job_id: str, from_token: int = 0, timeout: float | None = None) -> AsyncGenerator[Event, None]:
        """See `Client.events`."""
        return self._follow(EventStream(check_job_id(job_id), from_token, timeout, self._reconnect_s))

    async def stream(self, *, fail_fast: bool = False, **fields: Unpack[SubmissionFields]) -> AsyncGenerator[str, None]:
        """See `Client.stream`; the job is queued when its first text is asked for."""
        check_one_choice(fields)
        job_id = await self.submit(fail_fast=fail_fast, **fields)
        ended = False
        try:
            async with aclosing(self.events(job_id)) as events:
                async for event in events:
                    ended = bool(state_after(event))
                    for text in text_of(event):
                        yield text
        finally:
            if fields.get("on_disconnect") == "cancel" and not ended:
                await self.cancel(job_id)

    def chat(
        self, text: str, *, fail_fast: bool = False, **fields: Unpack[SubmissionFields]
    ) -> AsyncGenerator[str, None]:
        """See `Client.chat`."""
        return self.stream(fail_fast=fail_fast, **with_message(text, fields))

    async def result(self, job_id: str, timeout: float | None = None) -> Result:
        """See `Client.result`."""
        builder = ResultBuilder(job_id)
        async for event in self.events(job_id, timeout=timeout):
            builder.add(event)
        return builder.result()

    async def status(self, job_id: str) -> Status:
        """See `Client.status`."""
        return (await self.statuses([job_id]))[0]

    async def statuses(self, job_ids: Sequence[str]) -> list[Status]:
        """See `Client.statuses`."""
        pipeline = pipeline_of_statuses(self._scripts["look"], job_ids, self._prefix)
        with self._on_its_loop():
            return read_statuses(job_ids, await pipeline.execute_async(self._redis, raise_on_error=False))

    async def cancel(self, job_id: str) -> str:
        """See `Client.cancel`."""
        arguments = cancellation(check_job_id(job_id))
        with self._on_its_loop():
            return state_of(job_id, await self._scripts["cancel"]([], arguments))

    async def workers(self) -> list[WorkerStatus]:
        """See `Client.workers`."""
        with self._on_its_loop():
            return WorkerStatus.read_all(await self._scripts["workers"]([], []))

    async def queues(self) -> list[QueueStatus]:
        """See `Client.queues`."""
        tally = QueueTally()
        with self._on_its_loop():
            while tally.arguments:
                tally.add(await self._scripts["queues"]([], tally.arguments))
        return tally.queues(await self.workers())

    async def jobs(self, state: str | None = None, model: str | None = None, limit: int = 1000) -> list[JobSummary]:
        """See `Client.jobs`."""
        found = JobList(state, model, limit)
        with self._on_its_loop():
            while found.arguments:
                found.add(await self._scripts["jobs"]([], found.arguments))
        return found.jobs()

    async def wait_estimate(self, job_id: str) -> WaitEstimate:
        """See `Client.wait_estimate`."""
        status, count = await self.status(job_id), WaitCount(job_id)
        with self._on_its_loop():
            while count.arguments:
                count.add(await self._scripts["ahead"]([], count.arguments))
        return count.estimate(status, await self.workers())

    def _on_its_loop(self) -> AbstractContextManager[None]:
        """`redis_errors`. Raises `InvalidRequest` where asyncio would say that a loop is closed, or is another one."""
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            raise InvalidRequest("AsyncClient: it was used on another event loop before; make one for each loop")
        return redis_errors(self._settings)

    async def _write(self, batch: Sequence[Submission], stored: list[str]) -> None:
        if not self._publisher.is_open:  # to import Celery takes a while
            await asyncio.to_thread(self._publisher.open)
        pipeline = ScriptPipeline.of(self._scripts["submit"], submit_arguments(batch, self._publisher))
        with self._on_its_loop():
            answers = await pipeline.execute_async(self._redis)
        if left := messages_left(batch, answers):  # kombu has no asyncio producer
            await asyncio.to_thread(self._publisher.announce, left)
        add_stored(stored, batch, answers)

    async def _follow(self, stream: EventStream) -> AsyncGenerator[Event, None]:
        with self._on_its_loop():
            while not stream.ended:
                try:
                    async with aclosing(self._subscribe(stream)) as events:
                        async for event in events:
                            yield event
                except redis.RedisError as error:
                    await asyncio.sleep(stream.backoff_s(error))

    async def _subscribe(self, stream: EventStream) -> AsyncGenerator[Event, None]:
        async with self._subscriptions.subscription_async() as channel:
            async with answer_in_time():
                await channel.subscribe(schema.events_channel(stream.job_id, self._prefix))
            while not stream.ended:
                async with answer_in_time():  # after a cut connection it connects again
                    message = await channel.get_message(timeout=stream.wait_s())
                events = stream.received(message)
                if events is None:
                    async for event in self._replay(stream):
                        yield event
                for event in events or ():
                    yield event

    async def _replay(self, stream: EventStream) -> AsyncGenerator[Event, None]:
        start = stream.log_start
        while start:
            pipeline = pipeline_of_page(self._scripts["look"], stream.job_id, start, self._prefix)
            look, entries = await pipeline.execute_async(self._redis, raise_on_error=False)
            events, start = stream.replayed(start, Look.read(stream.job_id, look), usable(entries))
            for event in events:
                yield event
