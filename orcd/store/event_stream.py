"""One reader of a job's events: what to take, what to drop, when to look at the log again, when to give up.

It does no input or output itself, so that the sync and the asyncio client behave alike. They subscribe, hand over what
arrives, and replay the log whenever the reader asks for it: when a subscription begins (also one that a cut connection
made necessary), when an event is missing, and after a while of silence.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
import redis

from orcd.errors import InvalidRequest
from orcd.events import End, Error, Event, Position, Queued, Started, Token, calls_behind, decode_event, length_of_calls
from orcd.status import Look, damaged
from orcd.store import schema
from orcd.store.backoff import Backoff
from orcd.store.redis_connection import is_refusal
from orcd.store.token_log import Entry, read_entry, terminal_error

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
        self._has_looked = False

    @property
    def ended(self) -> bool:
        """Whether the terminal event was seen."""
        return self._cursor.ended

    @property
    def log_start(self) -> str:
        """The first entry id that may hold something new."""
        return f"{self._cursor.num_tokens}-0"

    def wait_s(self) -> float:
        """How long to wait for the next message. Raises TimeoutError once the time is over and the log was read."""
        return min(POLL_S, self._time_left_s(may_end=self._has_looked))

    def backoff_s(self, error: redis.RedisError) -> float:
        """How long to wait after ``error`` before connecting again.

        Raises it when Redis has been away or out of order too long, and at once where it is there and refuses us.
        """
        if is_refusal(error):
            raise error
        return min(self._backoff.failed(error), self._time_left_s(may_end=True))

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
        self._has_looked = True
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
                prompt_logprobs=None,  # they came with the first of the tokens
            )
        ]

    def _time_left_s(self, *, may_end: bool) -> float:
        if self._deadline is None:
            return POLL_S
        left_s = self._deadline - time.monotonic()
        if left_s <= 0 and may_end:
            raise TimeoutError(f"job {self.job_id}: did not end within {self._timeout} s")
        return max(0.0, left_s)


class Cursor:
    """Says what of each event a reader has not seen: the same event may come from the log and from the channel.

    Published events carry no entry id, so tokens are counted instead. When Redis has forgotten the end of a log, the
    job's owner generates it again, and one of the new events may begin within what was seen: it is cut there.
    """

    def __init__(self) -> None:
        self._choices: defaultdict[int, _SeenChoice] = defaultdict(_SeenChoice)
        self._last_start = (0, 0)
        self.ended = False

    @property
    def num_tokens(self) -> int:
        """Tokens seen so far, over all choices: no event below the entry id ``<num_tokens>-0`` is new."""
        return sum(choice.num_tokens for choice in self._choices.values())

    def new_part(self, event: Event) -> Event | None:
        """What of ``event`` is new, None if nothing is: each event is new once.

        Raises ValueError when tokens before it are missing, or it cannot be told what of it is new.
        """
        if self.ended:
            return None
        match event:
            case Token(choice=choice):
                return self._choices[choice].new_part(event)
            case Started(attempt=attempt, started_at=started_at):
                if (attempt, started_at) <= self._last_start:
                    return None
                self._last_start = attempt, started_at
            case End() | Error():
                self.ended = True
        return event


class _SeenChoice:
    """The last tokens of one choice, and where in its texts they begin and end as far as events have shown that."""

    MAX_TOKENS = 4096

    def __init__(self) -> None:
        self.num_tokens = 0
        self._finished = False
        self._ids = array("q")
        # At the border behind so many tokens: the lengths of text, analysis, commentary and calls up to there.
        self._borders = array("q", [0])
        self._lengths = tuple(array("q", [0]) for _ in range(4))

    def new_part(self, event: Token) -> Token | None:
        seen, last = self.num_tokens, event.i + len(event.ids) - 1
        if event.i > seen + 1:
            raise ValueError(f"tokens {seen + 1} to {event.i - 1} of choice {event.choice} are missing")
        self._compare(event, min(seen, last))
        if last <= seen:
            self._note_border(event, last)
            if event.finish is None or self._finished:
                return None
        new = self._without_seen(event, seen - event.i + 1)
        self._finished |= event.finish is not None
        if new.ids:
            self._ids.extend(new.ids)
            self.num_tokens = last
            self._note_border(event, last)
            self._forget()
        return new

    def _compare(self, event: Token, last_seen: int) -> None:
        """Raises ValueError if tokens that were seen are others in ``event``."""
        first_kept = self.num_tokens - len(self._ids) + 1
        start = max(event.i, first_kept)
        num_tokens = last_seen - start + 1
        if num_tokens <= 0:
            return
        known = self._ids[start - first_kept :][:num_tokens].tolist()
        if known != event.ids[start - event.i :][:num_tokens]:
            raise ValueError(f"tokens from {start} of choice {event.choice} are others than before")

    def _without_seen(self, event: Token, num_seen: int) -> Token:
        """The event less its first tokens. Raises ValueError if it is not known which of its text is theirs."""
        if not num_seen:
            return event
        if num_seen == len(event.ids):  # only that it is the choice's last event is new
            return Token("", self.num_tokens + 1, [], event.choice, event.finish)
        start, end = self._lengths_at(event.i - 1), self._lengths_at(self.num_tokens)
        if start is None or end is None:
            raise ValueError(f"the text of token {event.i} of choice {event.choice} cannot be told from the next ones")
        text, analysis, commentary, calls = (after - before for before, after in zip(start, end, strict=True))
        return msgspec.structs.replace(
            event,
            t=event.t[text:],
            i=self.num_tokens + 1,
            ids=event.ids[num_seen:],
            analysis=event.analysis[analysis:],
            commentary=event.commentary[commentary:],
            logprobs=event.logprobs and event.logprobs[num_seen:],
            tool_calls=calls_behind(event.tool_calls, calls),
            prompt_logprobs=None,  # they came with the first of the tokens
        )

    def _note_border(self, event: Token, last: int) -> None:
        start = self._lengths_at(event.i - 1)
        if start is None or self._lengths_at(last) is not None:
            return
        place = bisect_left(self._borders, last)
        self._borders.insert(place, last)
        added = len(event.t), len(event.analysis), len(event.commentary), length_of_calls(event.tool_calls)
        for lengths, before, length in zip(self._lengths, start, added, strict=True):
            lengths.insert(place, before + length)

    def _lengths_at(self, border: int) -> tuple[int, ...] | None:
        place = bisect_left(self._borders, border)
        if place == len(self._borders) or self._borders[place] != border:
            return None
        return tuple(lengths[place] for lengths in self._lengths)

    def _forget(self) -> None:
        if len(self._ids) < 2 * self.MAX_TOKENS:
            return
        del self._ids[: -self.MAX_TOKENS]
        place = bisect_left(self._borders, self.num_tokens - self.MAX_TOKENS)
        for kept in (self._borders, *self._lengths):
            del kept[:place]
