"""A worker that is played: it writes the logs of many jobs at once, with the time in each token's text."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import redis

from orcd.events import End, Event, Position, Started, Token
from orcd.store import schema
from orcd.store.claim import Claim
from orcd.store.job_store import Append, JobStore
from orcd.store.token_log import LoggedEvent

AT_ONCE = 100
"""Jobs that one call is about."""
LEASE_MS = 120_000
TTL_S = 600


class PlayedWorker:
    """Serves ``model``: claims jobs, and then writes ``num_events`` tokens of each, one every ``pause_s``.

    So many spaces are in the text of each, beside what the others read.
    """

    def __init__(
        self, redis_url: str, num_events: int, pause_s: float = 1.0, *, model: str = "played", num_spaces: int = 1
    ) -> None:
        self.model = model
        self._redis = redis.Redis.from_url(redis_url)
        self._store = JobStore(self._redis, owner=model, model=model, lease_ms=LEASE_MS, ttl_s=TTL_S)
        self._num_events = num_events
        self._pause_s = pause_s
        self._space = " " * num_spaces
        self._claims: list[Claim] = []
        self._store.renew({}, is_ready=True)  # says that it serves the model

    def claim(self, num_jobs: int) -> None:
        """Claim so many jobs, as they come."""
        while len(self._claims) < num_jobs:
            waiting = [job_id.decode() for job_id in self._redis.zrange(schema.QUEUED, 0, AT_ONCE - 1)]
            self._claims += [claim for claim in self._store.claim(waiting) if isinstance(claim, Claim)]
            time.sleep(0.01)

    def play(self) -> None:
        """Write the tokens and the ends of all jobs that are claimed."""
        self._write(Position(), Position(0, 1), Started("", self.model, 0, 1))
        for number in range(1, self._num_events + 1):
            begin = time.monotonic()
            before = Position(number - 1) if number > 1 else Position(0, 1)
            self._write(before, Position(number), Token("", number, [number]))
            time.sleep(max(0.0, begin + self._pause_s - time.monotonic()))
        last = Position(self._num_events)
        self._write(last, last.after(0), End("length", 1, self._num_events, 0, 0, 0, ""))
        self._redis.close()

    @staticmethod
    def read(data: str) -> Iterator[tuple[float, int]]:
        """When the tokens of a chunk of a completion were written, in Unix seconds, and their numbers from 1."""
        for choice in json.loads(data)["choices"]:
            for written in filter(None, choice["text"].split(";")):
                time_s, number = written.split()
                yield float(time_s), int(number)

    def _write(self, before: Position, position: Position, event: Event) -> None:
        """The same event for all jobs; a token's text is when it was written and its number."""
        for start in range(0, len(self._claims), AT_ONCE):
            if isinstance(event, Token):
                event = Token(f"{time.time():.6f}{self._space}{event.i};", event.i, event.ids)
            state = "succeeded" if isinstance(event, End) else ""
            answers = self._store.append(
                [
                    Append(claim.job_id, claim.lease, before, [LoggedEvent(position, event)], state)
                    for claim in self._claims[start : start + AT_ONCE]
                ]
            )
            assert {answer.status for answer in answers} == {"appended"}
