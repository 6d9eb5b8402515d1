"""Jobs' events as a response reads them: with a time limit on each wait, and no faster than its client reads."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing
from types import TracebackType

import msgspec

from orcd.async_client import AsyncClient
from orcd.errors import OrcdError
from orcd.events import End, Error, Event, Loading, Queued, Started
from orcd.gateway.api_error import ApiError
from orcd.openai.completions import of_prompt

HOLD_S = 10.0
"""How long the status of a stream waits for what only a worker knows, such as whether the prompt fits the model."""
MAX_UNREAD = 64
"""Events of a job read ahead of a client. Redis ends subscriptions of one that is much slower: the log has the rest."""


class EventReader:
    """Reads the events of the jobs that answer a call, each with its job's index; use it in an async with block."""

    def __init__(self, client: AsyncClient, *job_ids: str) -> None:
        self._client = client
        self._job_ids = job_ids
        self._max_unread = MAX_UNREAD * len(job_ids)
        self._read: asyncio.Queue[tuple[int, Event | OrcdError]] = asyncio.Queue(self._max_unread)
        self._peeked: deque[tuple[int, Event]] = deque()

    async def __aenter__(self) -> EventReader:
        self._tasks = [asyncio.create_task(self._pump(index, job_id)) for index, job_id in enumerate(self._job_ids)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def events(self, longest_pause_s: float) -> AsyncIterator[tuple[int, Event] | None]:
        """The events to the last of every job; None where nothing happened for so long. Raises `OrcdError`."""
        num_running = len(self._job_ids)
        while num_running:
            found = await self.next(longest_pause_s)
            yield found
            if found is not None and isinstance(found[1], End | Error):
                num_running -= 1

    async def next(self, timeout_s: float) -> tuple[int, Event] | None:
        """The next event that is no news from the queue; None after so many seconds. Raises `OrcdError`."""
        return self._peeked.popleft() if self._peeked else await self._take(timeout_s)

    async def wait_for_start(self) -> None:
        """Wait until workers have got to each job's first token, at most `HOLD_S`. Raises `ApiError` if one has failed.

        That it has taken the job says little: only then it finds out whether the prompt fits. Where some write much
        before others begin, no more is read ahead of the client than at any other time.
        """
        end = time.monotonic() + HOLD_S
        waiting = set(range(len(self._job_ids)))
        while waiting and len(self._peeked) < self._max_unread:
            found = await self._take(max(0.0, end - time.monotonic()))
            if found is None:
                return
            index, event = found
            if isinstance(event, Error):
                raise self.failure(index, event)
            self._peeked.append(found)
            if not isinstance(event, Started):
                waiting.discard(index)

    def failure(self, index: int, event: Error) -> ApiError:
        """The answer that a job's error means; of several jobs it says whose."""
        if len(self._job_ids) > 1:
            event = msgspec.structs.replace(event, message=of_prompt(index, event.message))
        return ApiError.of_event(event)

    async def _take(self, timeout_s: float) -> tuple[int, Event] | None:
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    index, found = await self._read.get()
                    if isinstance(found, OrcdError):
                        raise found
                    if not isinstance(found, Queued | Loading):
                        return index, found
        except TimeoutError:
            return None

    async def _pump(self, index: int, job_id: str) -> None:
        try:
            async with aclosing(self._client.events(job_id)) as events:
                async for event in events:
                    await self._read.put((index, event))
                    if isinstance(event, End | Error):
                        return
        except OrcdError as error:
            await self._read.put((index, error))
