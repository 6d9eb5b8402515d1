"""Exponential backoff: how long to wait before something that failed is tried again."""

from __future__ import annotations

import math
import time


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
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, self._maximum_s)
        return pause_s

    def succeeded(self) -> None:
        """The next failure is the first again."""
        self._since = None
        self._next_s = self._initial_s
