"""Log events on stderr: one line each, as JSON for machines or for a person to read.

Events: ``startup``, ``no_chat_template``, ``odd_vocabulary``, ``model_load_start``, ``model_load_progress``,
``model_load_complete``, ``ready``, ``execute_start``, ``execute_end``, ``refused``, ``unhealthy``, ``healthy``,
``error``, ``shutdown``. Figures carry their unit in their name. Prompts and answers never get here: only ids, lengths
and hashes.
"""

from __future__ import annotations

import json
import select
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec


class EventLog:
    """Writes events that all carry ``worker_id`` and ``context`` (model, device ...)."""

    def __init__(self, log_format: str, worker_id: str, stream: TextIO | None = None, **context: Any) -> None:
        """``log_format`` is ``json``, ``text`` or ``auto``: text if ``stream`` (default: stderr) is a terminal."""
        self._stream = stream or sys.stderr
        self._as_text = log_format == "text" or (log_format == "auto" and self._stream.isatty())
        self._context = {"worker_id": worker_id, **context}
        self._lines: deque[str] = deque()

    def event(self, event: str, *, level: str = "info", **fields: Any) -> None:
        """Write one line, without the fields that are None. A stream that is gone is no reason to stop working."""
        self.later(event, level=level, **fields)
        self.flush()

    def later(self, event: str, *, level: str = "info", **fields: Any) -> None:
        """`event`, of which the line is written with the next one or by `flush`: many cost what one does."""
        fields = {name: value for name, value in fields.items() if value is not None}
        now = datetime.now(UTC)
        if self._as_text:
            line = " ".join([f"{now.astimezone():%H:%M:%S}", level.ljust(7), event, *map(_as_text, fields.items())])
        else:
            time = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            line = _as_json({"time": time, "level": level, "event": event, **self._context, **fields})
        self._lines.append(line + "\n")

    def flush(self) -> None:
        """Write what waits, in pieces that do not mix with what other processes write."""
        lines: list[str] = []
        num_bytes = 0
        with suppress(IndexError):  # other threads may take some meanwhile
            while self._lines:
                line = self._lines.popleft()
                size = len(line.encode(errors="replace"))
                if num_bytes + size > select.PIPE_BUF:  # a pipe that is nearly full would take a part of it only
                    self._write(lines)
                    lines, num_bytes = [], 0
                lines.append(line)
                num_bytes += size
        self._write(lines)

    def _write(self, lines: Sequence[str]) -> None:
        if lines:
            with suppress(OSError, ValueError):
                self._stream.write("".join(lines))
                self._stream.flush()


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
