"""How many jobs a worker ends in a second when it has work."""

from __future__ import annotations

import math
import time

SPAN_S = 60.0


class JobRate:
    """The ends of jobs over about the last minute in which there were any. Idle time counts for nothing.

    What is done of jobs that run counts as parts of ends: or a worker that has just begun with as many as it can would
    seem to end none. `ended` may be called by another thread than the others.
    """

    def __init__(self) -> None:
        self._ended = 0.0
        self._busy_s = 0.0
        self._num_new = 0
        self._last = time.monotonic()

    def per_s(self, num_done: float = 0.0) -> float:
        """Jobs a second; 0 while nothing is done. ``num_done`` is the sum of the parts done of those that run."""
        return (self._ended + num_done) / self._busy_s if self._busy_s else 0.0

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
