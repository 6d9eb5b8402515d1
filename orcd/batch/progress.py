"""How far a batch is, for whoever waits for it."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from tqdm import tqdm


class Progress(Protocol):
    """Somebody who is told how far the batch is; ``num_tokens`` counts those of this run, unfinished jobs' too."""

    def update(self, num_done: int, num_tokens: int) -> None:
        """Called several times a second."""


class Bar:
    """Progress on standard error: a bar on a terminal, otherwise a line now and then."""

    LINE_EVERY_S = 10.0

    def __init__(self, num_lines: int, num_done: int) -> None:
        self._start = self._last_line = time.monotonic()
        self._num_lines = num_lines
        self._first_done = num_done
        is_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=num_lines, initial=num_done, unit="job", dynamic_ncols=True) if is_terminal else None

    def update(self, num_done: int, num_tokens: int) -> None:
        """See `Progress`."""
        now = time.monotonic()
        rate = num_tokens / max(now - self._start, 1e-3)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{rate:,.0f} tok/s", refresh=False)
            self._bar.update(num_done - self._bar.n)
        elif now - self._last_line > self.LINE_EVERY_S:
            self._last_line = now
            jobs_per_s = (num_done - self._first_done) / (now - self._start)
            left = f"{(self._num_lines - num_done) / jobs_per_s:,.0f} s left" if jobs_per_s else "time left unknown"
            print(f"{num_done} of {self._num_lines} jobs, {rate:,.0f} tok/s, {left}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
