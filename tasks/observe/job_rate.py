"""How many jobs a worker ends in a second when it has work."""

from __future__ import annotations

import math
import time

SPAN_S = 60.0


class JobRate:
    """The ends of jobs over about the last minute in which there were any. Idle time counts for nothing.

    `ended` may be called by another thread than the one that calls `tick`.
    """

    def __init__(self) -> None:
        self._ended = 0.0
        self._busy_s = 0.0
        self._num_new = 0
        self._last = time.monotonic()

    @property
    def per_s(self) -> float:
        """Jobs a second; 0 while none has ended yet."""
        return self._ended / self._busy_s if self._busy_s else 0.0

    def ended(self) -> None:
        """A job has ended."""
        self._num_new += 1

    def tick(self, *, is_busy: bool) -> None:
        """Time has passed; ``is_busy`` says whether there are jobs now."""
        now = time.monotonic()
        passed_s, self._last = now - self._last, now
        num_new, self._num_new = self._num_new, 0
        if is_busy or num_new:
            kept = math.exp(-passed_s / SPAN_S)
            self._ended = kept * self._ended + num_new
            self._busy_s = kept * self._busy_s + passed_s
