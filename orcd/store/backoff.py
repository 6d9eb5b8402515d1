"""Exponential backoff: how long to wait before something that failed is tried again."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import redis

FIRST_RETRY_S = 0.05
MAX_RETRY_S = 2.0

T = TypeVar("T")


class Backoff:
    """The pauses between tries: ``initial_s``, then twice as long each time, at most ``maximum_s``.

    It gives up ``give_up_after_s`` after ``since``, a time of the monotonic clock, or without ``since`` after the first
    failure in a row.
    """

    def __init__(
        self, initial_s: float, maximum_s: float, give_up_after_s: float = math.inf, since: float | None = None
    ) -> None:
        self._initial_s = initial_s
        self._maximum_s = maximum_s
        self._give_up_after_s = give_up_after_s
        self._since = since
        self._next_s = initial_s

    def failed(self, error: Exception) -> float:
        """How many seconds to wait after ``error`` before the next try. Raises ``error`` to give up."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since > self._give_up_after_s:
            raise error
        return self.next_s()

    def next_s(self) -> float:
        """How many seconds to wait before the next try, whether or not one has failed; never gives up."""
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, self._maximum_s)
        return pause_s

    def succeeded(self) -> None:
        """The next failure is the first again."""
        self._since = None
        self._next_s = self._initial_s


def retry(
    call: Callable[[], T],
    stopping: threading.Event,
    failed: Callable[[redis.RedisError], None],
    longest_s: float = MAX_RETRY_S,
) -> T | None:
    """What ``call`` returns, called again after ever longer pauses for as long as Redis fails it.

    ``failed`` is told each error; no pause is longer than ``longest_s``. Returns None once ``stopping`` is set, before
    the next call.
    """
    backoff = Backoff(FIRST_RETRY_S, longest_s)
    while not stopping.is_set():
        try:
            return call()
        except redis.RedisError as error:
            failed(error)
            stopping.wait(min(longest_s, backoff.failed(error)))
    return None
