"""Clients on an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from orcd.async_client import AsyncClient
from orcd.events import Event, Token, state_after
from tests.chaos.clients.cases import Case
from tests.chaos.clients.seen import Seen
from tests.chaos.clients.sync_clients import AWAY_S, END_TIMEOUT_S, TRANSIENT


class AsyncClients:
    """The clients of one event loop. Each method runs one case and notes in ``seen`` what came of it."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def kinds(self) -> dict[str, tuple[int, Callable[[Case, Seen], Awaitable[None]]]]:
        """Name -> (how often, method)."""
        return {
            "async events": (6, self.events),
            "async stream": (1, self.stream),
            "async result": (1, self.result),
            "async reader that leaves": (2, self.follow_from),
        }

    async def events(self, case: Case, seen: Seen) -> None:
        """All events."""
        await self._submit(case, seen)
        seen.check_events(await self._watch(seen), case.answer)

    async def stream(self, case: Case, seen: Seen) -> None:
        """A stream of text. It has no id of ours: tried anew as long as there was no text."""
        if case.num_choices != 1:
            return await self.events(case, seen)
        text: list[str] = []
        end = time.monotonic() + AWAY_S
        while True:
            try:
                async with aclosing(self._client.stream(**case.fields)) as parts:
                    async for part in parts:
                        seen.arrivals.append(time.monotonic())
                        text.append(part)
                return seen.compare_text("".join(text), case.answer)
            except TRANSIENT:
                if text or time.monotonic() > end:
                    raise
                await asyncio.sleep(0.2)

    async def result(self, case: Case, seen: Seen) -> None:
        """Wait for the whole answer."""
        await self._submit(case, seen)
        result = await self._client.result(seen.job_id, timeout=END_TIMEOUT_S)
        seen.error = result.error.code if result.error else ""
        compare = seen.compare_begin if seen.error else seen.compare
        compare(tuple(result.choices), case.answer)

    async def follow_from(self, case: Case, seen: Seen) -> None:
        """Somebody reads some tokens of the first choice, goes away and comes back for those that follow."""
        await self._submit(case, seen)
        first = await self._watch(seen, num_tokens=6)
        if state_after(first[-1]):
            return seen.check_events(first, case.answer)
        counts = dict.fromkeys(range(case.num_choices), 0)
        for event in first:
            if isinstance(event, Token):
                counts[event.choice] += len(event.ids)
        from_token = min(counts.values())
        return seen.check_events(await self._watch(seen, from_token), case.answer, from_token)

    async def _submit(self, case: Case, seen: Seen) -> None:
        end = time.monotonic() + AWAY_S
        while True:
            seen.asked_s = time.monotonic()
            try:
                await self._client.submit(job_id=seen.job_id, **case.fields)
                seen.submitted_s = time.monotonic()
                return
            except TRANSIENT:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.2)

    async def _watch(self, seen: Seen, from_token: int = 0, num_tokens: int = 0) -> list[Event]:
        """The events, up to ``num_tokens`` tokens if that is not 0."""
        events: list[Event] = []
        num_seen = 0
        async with aclosing(self._client.events(seen.job_id, from_token, timeout=END_TIMEOUT_S)) as following:
            async for event in following:
                events.append(event)
                if isinstance(event, Token) or state_after(event):
                    seen.arrivals.append(time.monotonic())
                num_seen += len(event.ids) if isinstance(event, Token) else 0
                if num_tokens and num_seen >= num_tokens:
                    break
        return events
