"""One reader of a job's events: what to take, what to drop, when to look at the log again, when to give up.

It does no input or output itself, so that the sync and the asyncio client behave alike. They subscribe, hand over what
arrives, and replay the log whenever the reader asks for it: when a subscription begins (also one that a cut connection
made necessary), when an event is missing, and after a while of silence.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
import redis

from orcd.errors import InvalidRequest, OrcdError
from orcd.events import Cursor, Event, Queued, Started, Token, decode_event
from orcd.status import unknown_job
from orcd.store import schema
from orcd.store.backoff import Backoff

POLL_S = 2.0
"""Silence on the channel after which the record and the log are read again."""
PAGE_ENTRIES = 1000
"""Log entries read in one go."""
FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 1.0

Entry = tuple[bytes, dict[bytes, bytes]]
"""A log entry as redis-py gives it: id and fields."""


class EventStream:
    """Yields each event of a job once, from token index ``from_token`` + 1 of every choice.

    ``timeout`` is in seconds from now to the job's end, ``reconnect_s`` how long Redis may stay away.
    """

    def __init__(self, job_id: str, from_token: int, timeout: float | None, reconnect_s: float) -> None:
        if isinstance(from_token, bool) or not isinstance(from_token, int) or from_token < 0:
            raise InvalidRequest("from_token: must be a number of tokens, at least 0")
        self.job_id = job_id
        self._from_token = from_token
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._backoff = Backoff(FIRST_BACKOFF_S, LONGEST_BACKOFF_S, reconnect_s)
        self._cursor = Cursor()
        self._position: int | None = None

    @property
    def ended(self) -> bool:
        """Whether the terminal event was seen."""
        return self._cursor.ended

    @property
    def log_start(self) -> str:
        """The first entry id that may hold something new."""
        return f"{self._cursor.num_tokens}-0"

    def patience_s(self) -> float:
        """How long to wait for the next message. Raises TimeoutError once the time is over."""
        return min(POLL_S, self._time_left_s())

    def backoff_s(self, error: redis.RedisError) -> float:
        """How long to wait after ``error`` before connecting again. Raises it when Redis has been away too long."""
        return min(self._backoff.failed(error), self._time_left_s())

    def received(self, message: dict[str, Any] | None) -> list[Event] | None:
        """The new events in a message of the subscription (None: silence); None asks for a replay of the log."""
        if message is None or message["type"] != "message":
            return None
        try:
            return self._take(decode_event(message["data"]))
        except ValueError:  # unreadable, or tokens before it are missing
            return None

    def replayed(self, state: bytes | None, rank: int | None, entries: Sequence[Entry]) -> list[Event]:
        """The new events on a page of the log, and the job's place if it is queued.

        ``state`` is the record's, read before the page. Raises `InvalidRequest` if there is no such job, and
        `OrcdError` if its log does not hold what the record promises.
        """
        self._backoff.succeeded()
        if state is None:
            raise unknown_job(self.job_id)
        events: list[Event] = []
        try:
            for _, fields in entries:
                events += self._take(decode_event(fields[b"e"]))
        except (ValueError, KeyError):
            raise self._damaged() from None
        if state == b"queued":
            events += self._take(Queued(1 if rank is None else rank + 1))
        elif state.decode() in schema.TERMINAL_STATES and not self.ended and len(entries) < PAGE_ENTRIES:
            raise self._damaged()
        return events

    def _take(self, event: Event) -> list[Event]:
        if not self._cursor.is_new(event):
            return []
        match event:
            case Queued(position=position):
                known, self._position = self._position, position
                return [] if position == known else [event]
            case Started():
                self._position = None
            case Token():
                return self._without_first(event)
        return [event]

    def _without_first(self, event: Token) -> list[Event]:
        """The event less the tokens that were not asked for; its text cannot be cut at a token and comes whole."""
        num_skipped = self._from_token - event.i + 1
        if num_skipped <= 0:
            return [event]
        if num_skipped >= len(event.ids):
            return []
        return [
            msgspec.structs.replace(
                event,
                i=event.i + num_skipped,
                ids=event.ids[num_skipped:],
                logprobs=event.logprobs and event.logprobs[num_skipped:],
            )
        ]

    def _time_left_s(self) -> float:
        if self._deadline is None:
            return POLL_S
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"job {self.job_id}: did not end within {self._timeout} s")
        return left_s

    def _damaged(self) -> OrcdError:
        return OrcdError(f"job {self.job_id}: its token log is damaged or gone; submit it again under another id")
