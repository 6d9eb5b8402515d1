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
from redis.exceptions import NoScriptError

from orcd.errors import InvalidRequest
from orcd.events import Cursor, End, Event, Position, Queued, Started, Token, decode_event
from orcd.status import Look
from orcd.store import schema
from orcd.store.backoff import Backoff
from orcd.store.redis_connection import is_refusal
from orcd.store.token_log import Entry, damaged, read_entry, terminal_error

POLL_S = 2.0
"""Silence on the channel after which the record and the log are read again."""
PAGE_ENTRIES = 1000
"""Log entries read in one go."""
WHOLE_LOG = "0-0"
"""Where a replay begins that reads all of the log."""
FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 1.0


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
        self._queued: Queued | None = None
        self._replays_all = True

    @property
    def ended(self) -> bool:
        """Whether the terminal event was seen."""
        return self._cursor.ended

    @property
    def log_start(self) -> str:
        """The first entry id that may hold something new."""
        return f"{self._cursor.num_tokens}-0"

    def wait_s(self) -> float:
        """How long to wait for the next message. Raises TimeoutError once the time is over."""
        return min(POLL_S, self._time_left_s())

    def backoff_s(self, error: redis.RedisError) -> float:
        """How long to wait after ``error`` before connecting again.

        Raises it when Redis has been away or out of order too long, and at once where it is there and refuses us. A
        script may be flushed at any time: then it is loaded again.
        """
        if is_refusal(error) and not isinstance(error, NoScriptError):
            raise error
        return min(self._backoff.failed(error), self._time_left_s())

    def received(self, message: dict[str, Any] | None) -> list[Event] | None:
        """The new events in a message of the subscription (None: silence); None asks for a replay of the log."""
        if message is None or message["type"] != "message":
            return None
        try:
            event = decode_event(message["data"])
            if isinstance(event, End) and event.tokens_out != self._cursor.num_tokens:
                return None
            return self._take(event)
        except ValueError:  # unreadable, or tokens before it are missing
            return None

    def replayed(self, start: str, look: Look, entries: Sequence[Entry] | None) -> tuple[list[Event], str]:
        """The new events on the page of the log from ``start``, and where the next page starts ('' if there is none).

        ``look`` was made before the page was read; ``entries`` are None where the log cannot be used. Raises
        `LogDamaged` if the log does not hold what the record promises, unless the record has the error that the job
        ended with: that then stands for what is missing.
        """
        self._backoff.succeeded()
        if not start.startswith("("):
            self._replays_all = start == WHOLE_LOG
        events: list[Event] = []
        try:
            if entries is None:
                raise ValueError("the log is none")
            self._read_page(start, look, entries, events)
        except ValueError:
            # Redis may have forgotten what we have seen, and the log goes on in another way from before that.
            if not self._replays_all:
                return events, WHOLE_LOG
            error = terminal_error(look.end)
            if error is None:
                raise damaged(self.job_id) from None
            return events + self._take(error), ""
        if look.state == "queued":
            position = 1 if look.rank is None else look.rank + 1
            events += self._take(Queued(position, look.served, look.reason))
        return events, f"({entries[-1][0].decode()}" if len(entries) == PAGE_ENTRIES else ""

    def _read_page(self, start: str, look: Look, entries: Sequence[Entry], events: list[Event]) -> None:
        """Add the new events to ``events``. Raises ValueError where the log does not go on, or ends too soon."""
        before = Position.parse(start[1:].encode()) if start.startswith("(") else None
        if start == WHOLE_LOG:
            before = Position()
        for entry in entries:
            logged = read_entry(entry, before)
            before = logged.position
            if isinstance(logged.event, End) and before.n != self._cursor.num_tokens:
                raise ValueError("the end comes behind other tokens than were seen")
            events += self._take(logged.event)
        if look.state in schema.TERMINAL_STATES and not self.ended and len(entries) < PAGE_ENTRIES:
            raise ValueError("the end is missing")

    def _take(self, event: Event) -> list[Event]:
        new = self._cursor.new_part(event)
        match new:
            case None:
                return []
            case Queued():
                known, self._queued = self._queued, new
                return [] if new == known else [new]
            case Started():
                self._queued = None
            case Token():
                return self._without_first(new)
        return [new]

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
