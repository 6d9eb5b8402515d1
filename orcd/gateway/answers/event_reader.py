"""A job's events as a response reads them: with a time limit on each wait, and no faster than its client reads."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing
from types import TracebackType

from orcd.async_client import AsyncClient
from orcd.errors import OrcdError
from orcd.events import End, Error, Event, Loading, Queued, Started
from orcd.gateway.api_error import ApiError

HOLD_S = 10.0
"""How long the status of a stream waits for what only a worker knows, such as whether the prompt fits the model."""
MAX_UNREAD = 64
"""Events read ahead of a client. Redis ends the subscription of one that is much slower, who then reads the log."""


class EventReader:
    """Reads one job's events; use it in an async with block."""

    def __init__(self, client: AsyncClient, job_id: str) -> None:
        self._client = client
        self._job_id = job_id
        self._read: asyncio.Queue[Event | OrcdError] = asyncio.Queue(MAX_UNREAD)
        self._peeked: deque[Event] = deque()

    async def __aenter__(self) -> EventReader:
        self._task = asyncio.create_task(self._pump())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def events(self, longest_pause_s: float) -> AsyncIterator[Event | None]:
        """The events to the last; None where nothing happened for so long. Raises `OrcdError`."""
        while True:
            event = await self.next(longest_pause_s)
            yield event
            if isinstance(event, End | Error):
                return

    async def next(self, timeout_s: float) -> Event | None:
        """The next event that is no news from the queue; None after so many seconds. Raises `OrcdError`."""
        return self._peeked.popleft() if self._peeked else await self._take(timeout_s)

    async def wait_for_start(self) -> None:
        """Wait until a worker has got to the first token, at most `HOLD_S`. Raises `ApiError` if it has failed instead.

        That it has taken the job says little: only then it finds out whether the prompt fits.
        """
        end = time.monotonic() + HOLD_S
        while (event := await self._take(max(0.0, end - time.monotonic()))) is not None:
            if isinstance(event, Error):
                raise ApiError.of_event(event)
            self._peeked.append(event)
            if not isinstance(event, Started):
                return

    async def _take(self, timeout_s: float) -> Event | None:
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    found = await self._read.get()
                    if isinstance(found, OrcdError):
                        raise found
                    if not isinstance(found, Queued | Loading):
                        return found
        except TimeoutError:
            return None

    async def _pump(self) -> None:
        try:
            async with aclosing(self._client.events(self._job_id)) as events:
                async for event in events:
                    await self._read.put(event)
                    if isinstance(event, End | Error):
                        return
        except OrcdError as error:
            await self._read.put(error)
