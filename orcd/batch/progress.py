"""How far a batch is, for whoever waits for it."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from tqdm import tqdm

_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} lines{postfix} [{elapsed}, {remaining} left]"


class Progress(Protocol):
    """Somebody who is told how far the batch is."""

    def update(self, num_done: int, num_failed: int, num_tokens: int) -> None:
        """Called several times a second.

        ``num_failed`` of the ``num_done`` lines have no result; ``num_tokens`` are those generated in this run, those
        of unfinished jobs too.
        """


class Bar:
    """Progress on standard error: a bar on a terminal, otherwise a line now and then.

    With ``is_drawn`` False there is no bar on a terminal either, for one that results are printed on.
    """

    LINE_EVERY_S = 10.0

    def __init__(self, num_lines: int, num_done: int, *, is_drawn: bool = True) -> None:
        self._start = self._last_line = time.monotonic()
        self._num_lines = num_lines
        self._first_done = num_done
        is_drawn = is_drawn and sys.stderr.isatty()
        self._bar = (
            tqdm(total=num_lines, initial=num_done, dynamic_ncols=True, smoothing=0.1, bar_format=_BAR)
            if is_drawn
            else None
        )

    def update(self, num_done: int, num_failed: int, num_tokens: int) -> None:
        """See `Progress`."""
        now = time.monotonic()
        rate = f"{max(0, num_tokens) / max(now - self._start, 1e-3):,.0f} tok/s"
        if self._bar is not None:
            self._bar.set_postfix_str(f"{num_failed} failed, {rate}", refresh=False)
            self._bar.update(num_done - self._bar.n)
        elif now - self._last_line > self.LINE_EVERY_S:
            self._last_line = now
            lines_per_s = (num_done - self._first_done) / (now - self._start)
            left = f"{(self._num_lines - num_done) / lines_per_s:,.0f} s left" if lines_per_s else "time left unknown"
            print(
                f"{num_done} of {self._num_lines} lines done, {num_failed} failed, {rate}, {left}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
