"""Clients that block: streams of events and of text, results, chats, cancellations, readers that come back."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import redis

from orcd.client import Client
from orcd.errors import InvalidRequest, QueueFull, RedisUnavailable
from orcd.events import Event, Position, Token, decode_event, state_after
from orcd.store import schema
from tests.chaos.clients.cases import Case
from tests.chaos.clients.seen import Seen

END_TIMEOUT_S = 60.0
"""A job that has not ended after this time is lost."""
AWAY_S = 60.0
"""How long a client tries to submit."""
POLL_S = 0.5
TRANSIENT = (RedisUnavailable, QueueFull)
"""After these a client tries again."""


def patiently(call: Callable[[], Any]) -> Any:
    """What ``call`` returns, once Redis is there and has room. Raises the error of one that stays away, or full."""
    end = time.monotonic() + AWAY_S
    while True:
        try:
            return call()
        except TRANSIENT:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


class SyncClients:
    """The clients of one thread. Each method runs one case and notes in ``seen`` what came of it."""

    def __init__(self, redis_url: str, chance: random.Random) -> None:
        self._client = Client(redis_url)
        self._redis_url = redis_url
        self._chance = chance

    def kinds(self) -> dict[str, tuple[int, Callable[[Case, Seen], None]]]:
        """Name -> (how often, method)."""
        return {
            "events": (6, self.events),
            "stream": (2, self.stream),
            "chat": (1, self.chat),
            "follow from N": (3, self.follow_from),
            "result": (2, self.result),
            "cancel": (2, self.cancel),
            "listener": (1, self.listener),
            "leaver": (1, self.leaver),
            "resubmit": (1, self.resubmit),
        }

    def events(self, case: Case, seen: Seen) -> None:
        """All events; then, sometimes, the log itself."""
        self._submit(case, seen)
        self._follow(case, seen)
        if self._chance.random() < 0.3 and not seen.error:
            self._check_log(seen)

    def listener(self, case: Case, seen: Seen) -> None:
        """A job that ends with its listener, who listens all the time."""
        self._submit(case, seen, on_disconnect="cancel")
        self._follow(case, seen)

    def stream(self, case: Case, seen: Seen) -> None:
        """A stream of text. It has no id of ours: tried anew as long as there was no text."""
        if case.num_choices != 1:
            return self.events(case, seen)
        return self._read_text(seen, case, lambda: self._client.stream(**case.fields))

    def chat(self, case: Case, seen: Seen) -> None:
        """A chat of one message."""
        if case.num_choices != 1 or not case.text:
            return self.events(case, seen)
        fields = {name: value for name, value in case.fields.items() if name != "messages"}
        return self._read_text(seen, case, lambda: self._client.chat(case.text, **fields))

    def follow_from(self, case: Case, seen: Seen) -> None:
        """Somebody reads some tokens, goes away and comes back for those that follow."""
        self._submit(case, seen)
        counts = dict.fromkeys(range(case.num_choices), 0)
        first: list[Event] = []
        with closing(self._client.events(seen.job_id, timeout=END_TIMEOUT_S)) as events:
            for event in events:
                first.append(event)
                if isinstance(event, Token):
                    seen.arrivals.append(time.monotonic())
                    counts[event.choice] += len(event.ids)
                if sum(counts.values()) >= 12:
                    break
        if state_after(first[-1]):
            seen.check_events(first, case.answer)
            return
        time.sleep(self._chance.uniform(0, 0.5))
        from_token = min(counts.values())
        seen.check_events(list(self._watch(seen, from_token)), case.answer, from_token)

    def result(self, case: Case, seen: Seen) -> None:
        """Wait for the whole answer."""
        self._submit(case, seen)
        result = self._client.result(seen.job_id, timeout=END_TIMEOUT_S)
        seen.error = result.error.code if result.error else ""
        compare = seen.compare_begin if seen.error else seen.compare
        compare(tuple(result.choices), case.answer)

    def cancel(self, case: Case, seen: Seen) -> None:
        """Cancel after a few tokens, or before the first."""
        seen.may_fail = ("CANCELLED",)
        self._submit(case, seen)
        most = self._chance.choice([0, 5, 20])
        events: list[Event] = []
        num_tokens, is_cancelled = 0, False
        for event in self._watch(seen):
            events.append(event)
            num_tokens += len(event.ids) if isinstance(event, Token) else 0
            if num_tokens >= most and not is_cancelled and not state_after(event):
                patiently(lambda: self._client.cancel(seen.job_id))
                is_cancelled = True
        seen.check_events(events, case.answer)

    def leaver(self, case: Case, seen: Seen) -> None:
        """A job that ends with its listener, who leaves: it must end, one way or the other."""
        seen.may_fail = ("CANCELLED",)
        self._submit(case, seen, on_disconnect="cancel")
        with closing(self._client.events(seen.job_id, timeout=END_TIMEOUT_S)) as events:
            for event in events:
                if isinstance(event, Token) or state_after(event):
                    break
        end = time.monotonic() + END_TIMEOUT_S
        while patiently(lambda: self._client.status(seen.job_id)).state not in schema.TERMINAL_STATES:
            if time.monotonic() > end:
                seen.blame("lost", "still not ended long after its listener left")
                return
            time.sleep(POLL_S)
        self._follow(case, seen)
        seen.arrivals.clear()  # nobody was there to see the tokens come

    def resubmit(self, case: Case, seen: Seen) -> None:
        """The same request again and again under one key, also after its end, is one job."""
        key, times = seen.job_id, (seen.asked_s, seen.submitted_s)
        for number in range(3):
            job_id = self._ask(seen, idempotency_key=key, **case.fields)
            if number < 2:
                times = seen.asked_s, seen.submitted_s
            else:
                seen.asked_s, seen.submitted_s = times
            if number and job_id != seen.job_id:
                seen.blame("doubled", f"the same request under one key is job {seen.job_id} and job {job_id}")
            seen.job_id = job_id
            if number == 1:
                self._follow(case, seen)
            time.sleep(self._chance.uniform(0, 1))

    def _submit(self, case: Case, seen: Seen, **more: Any) -> None:
        self._ask(seen, job_id=seen.job_id, **case.fields, **more)

    def _ask(self, seen: Seen, **fields: Any) -> str:
        def submit() -> str:
            seen.asked_s = time.monotonic()
            return self._client.submit(**fields)

        job_id = patiently(submit)
        seen.submitted_s = time.monotonic()
        return job_id

    def _follow(self, case: Case, seen: Seen) -> None:
        seen.check_events(list(self._watch(seen)), case.answer)

    def _watch(self, seen: Seen, from_token: int = 0) -> Any:
        for event in self._client.events(seen.job_id, from_token, timeout=END_TIMEOUT_S):
            if isinstance(event, Token) or state_after(event):
                seen.arrivals.append(time.monotonic())
            yield event

    def _read_text(self, seen: Seen, case: Case, start: Callable[[], Any]) -> None:
        text: list[str] = []
        end = time.monotonic() + AWAY_S
        while True:
            try:
                for part in start():
                    seen.arrivals.append(time.monotonic())
                    text.append(part)
                break
            except TRANSIENT:
                if text or time.monotonic() > end:
                    raise
                time.sleep(0.2)
        seen.compare_text("".join(text), case.answer)

    def _check_log(self, seen: Seen) -> None:
        """The log itself: its entries follow each other, each token index once."""
        with redis.Redis.from_url(self._redis_url) as connection, suppress(redis.RedisError, InvalidRequest):
            entries: Any = connection.xrange(schema.log_key(seen.job_id))
            place = Position()
            counts: dict[int, int] = {}
            for entry, fields in entries:
                event = decode_event(fields[b"e"])
                num_tokens = len(event.ids) if isinstance(event, Token) else 0
                place = place.after(num_tokens)
                if Position.parse(entry) != place:
                    seen.log_problem = f"its log has {entry.decode()} where {place} should be"
                    return
                if isinstance(event, Token) and num_tokens:
                    if event.i != counts.get(event.choice, 0) + 1:
                        seen.log_problem = f"its log has token {event.i} after {counts.get(event.choice, 0)}"
                        return
                    counts[event.choice] = counts.get(event.choice, 0) + num_tokens
