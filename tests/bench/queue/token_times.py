"""When the tokens of jobs come, as a client sees them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any

import redis

from orcd.events import Token, decode_event
from orcd.store import schema

POLL_S = 0.1


class TokenTimes:
    """Listens to jobs within a with block; ``times`` has the moments of each job's token events.

    They are of the monotonic clock, in seconds.
    """

    def __init__(self, redis_url: str, job_ids: Sequence[str]) -> None:
        self.times: dict[str, list[float]] = {job_id: [] for job_id in job_ids}
        self._connection: Any = redis.Redis.from_url(redis_url)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> TokenTimes:
        self._channel = self._connection.pubsub(ignore_subscribe_messages=True)
        self._channel.subscribe(*(schema.events_channel(job_id) for job_id in self.times))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        self._channel.close()
        self._connection.close()

    def wait_for(self, num_events: int, timeout_s: float = 60.0) -> None:
        """Until each job has so many token events. Raises TimeoutError."""
        end = time.monotonic() + timeout_s
        while any(len(times) < num_events for times in self.times.values()):
            if time.monotonic() > end:
                raise TimeoutError("the jobs give too few tokens")
            time.sleep(0.01)

    def gaps_s(self, since: float, until: float) -> list[float]:
        """The times from one token event of a job to its next one, as far as they lie between two moments."""
        return [
            later - earlier
            for times in self.times.values()
            for earlier, later in pairwise(times)
            if later > since and earlier < until
        ]

    def _listen(self) -> None:
        job_ids = {schema.events_channel(job_id).encode(): job_id for job_id in self.times}
        while not self._is_over.is_set():
            message = self._channel.get_message(timeout=POLL_S)
            if message is not None and isinstance(decode_event(message["data"]), Token):
                self.times[job_ids[message["channel"]]].append(time.monotonic())
