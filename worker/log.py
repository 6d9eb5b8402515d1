"""Log events on stderr: one line each, as JSON for machines or for a person to read.

Events: ``startup``, ``redis_setup``, ``no_chat_template``, ``odd_vocabulary``, ``model_load_start``,
``model_load_progress``, ``model_load_complete``, ``ready``, ``execute_start``, ``execute_end``, ``refused``,
``unhealthy``, ``healthy``, ``error``, ``lines_lost``, ``shutdown``. Figures carry their unit in their name. Prompts and
answers never get here: only ids, lengths and hashes.
"""

from __future__ import annotations

import json
import select
import sys
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

MAX_WAITING = 10_000
"""Lines that are kept while nobody takes them: the last ones."""
PATIENCE_MS = 1000
"""A reader that takes nothing for so long stands still: it is not waited for until it takes something."""


class EventLog:
    """Writes events that all carry ``worker_id`` and ``context`` (model, device ...).

    A stream that is gone, or whose reader stands still (a terminal after Ctrl-S, a full pipe), stops nobody's work:
    lines wait until they are taken, and where they are too many ``lines_lost`` tells how many were dropped.
    """

    def __init__(self, log_format: str, worker_id: str, stream: TextIO | None = None, **context: Any) -> None:
        """``log_format`` is ``json``, ``text`` or ``auto``: text if ``stream`` (default: stderr) is a terminal."""
        self._stream = stream or sys.stderr
        self._as_text = log_format == "text" or (log_format == "auto" and self._stream.isatty())
        self._context = {"worker_id": worker_id, **context}
        self._lines: deque[str] = deque(maxlen=MAX_WAITING)
        self._num_lost = 0
        self._stands_still = False
        self._writing = threading.RLock()

    def event(self, event: str, *, level: str = "info", **fields: Any) -> None:
        """Write one line, without the fields that are None."""
        self.later(event, level=level, **fields)
        self.flush()

    def later(self, event: str, *, level: str = "info", **fields: Any) -> None:
        """`event`, of which the line is written with the next one or by `flush`: many cost what one does."""
        self._num_lost += len(self._lines) == MAX_WAITING
        self._lines.append(self._line(event, level, fields))

    def flush(self) -> None:
        """Write what waits, in pieces that do not mix with what other processes write."""
        with self._writing:  # what has room for one thread has none for two
            while self._lines and self._has_room():
                text = "".join(self._taken())
                with suppress(OSError, ValueError):
                    self._stream.write(text)
                    self._stream.flush()

    def _line(self, event: str, level: str, fields: Mapping[str, Any]) -> str:
        fields = {name: value for name, value in fields.items() if value is not None}
        now = datetime.now(UTC)
        if self._as_text:
            words = [f"{now.astimezone():%H:%M:%S}", level.ljust(7), event, *map(_as_text, fields.items())]
            return " ".join(words) + "\n"
        time = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return _as_json({"time": time, "level": level, "event": event, **self._context, **fields}) + "\n"

    def _taken(self) -> list[str]:
        """The next lines, as many as a pipe takes at once: one that is nearly full would take a part of more only."""
        lines: list[str] = []
        num_bytes = 0
        if self._num_lost:
            lines.append(self._line("lines_lost", "warning", {"lines": self._num_lost}))
            self._num_lost, num_bytes = 0, len(lines[0])
        while self._lines:
            num_bytes += len(self._lines[0].encode(errors="replace"))
            if lines and num_bytes > select.PIPE_BUF:
                break
            lines.append(self._lines.popleft())
        return lines

    def _has_room(self) -> bool:
        """Whether a piece can be written without waiting for the reader, who may be slow."""
        try:
            poll = select.poll()
            poll.register(self._stream.fileno(), select.POLLOUT)
        except (OSError, ValueError):  # it is no file, or closed
            return True
        self._stands_still = not poll.poll(0 if self._stands_still else PATIENCE_MS)
        return not self._stands_still


def _as_json(fields: dict[str, Any]) -> str:
    with suppress(TypeError, ValueError):  # half of a surrogate
        line = msgspec.json.encode(fields, enc_hook=str)  # in a tenth of the time
        if line.isascii():
            return line.decode()
    return json.dumps(fields, default=str, separators=(",", ":"))


def _as_text(field: tuple[str, Any]) -> str:
    name, value = field
    text = str(value)
    return f"{name}={text if text and text.isprintable() and ' ' not in text else json.dumps(text)}"
