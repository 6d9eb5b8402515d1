"""A job's events on a terminal: the answer on standard output as it grows, everything else on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from orcd import jsonl
from orcd.errors import printable
from orcd.events import End, Error, Event, Loading, Queued, Started, Token


def write_json(record: Any) -> None:
    """One JSON object on standard output, at once."""
    write_line(jsonl.encode(record))


def write_line(line: bytes) -> None:
    """A line of `orcd.jsonl` on standard output, at once."""
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def show_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Lines of columns under a head; what is empty is a dash."""
    lines = [head, *([printable(str(cell)) or "-" for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def duration(milliseconds: int) -> str:
    """A time for people, in its two largest units."""
    seconds = milliseconds // 1000
    for unit, unit_s, part, part_s in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= unit_s:
            return f"{seconds // unit_s}{unit} {seconds % unit_s // part_s}{part}"
    return f"{seconds}s"


def show_events(events: Iterable[Event]) -> Error | None:
    """Each event as a line of JSON. Returns the error that ended the job, if one did."""
    last = None
    for last in events:
        write_json(last)
    return last if isinstance(last, Error) else None


def show_text(events: Iterable[Event]) -> Error | None:
    """The first choice's text as it comes, further choices after it. Returns the error that ended the job, if any.

    Reasoning that a model keeps apart from its answer is left out.
    """
    status = _StatusLine()
    others: dict[int, str] = {}
    is_in_line = False
    last = None
    for last in events:
        match last:
            case Queued(position=position, reason=reason):
                status.show(f"position {position}: {reason}")
            case Loading(percent=percent, remaining_ms=None):
                status.show(f"loading the model, {percent} %")
            case Loading(percent=percent, remaining_ms=int(remaining_ms)):
                status.show(f"loading the model, {percent} %, about {-(-remaining_ms // 1000)} s left")
            case Started():
                status.clear()
            case Token(t=text, choice=0):
                status.clear()
                sys.stdout.write(text)
                sys.stdout.flush()
                is_in_line = True
            case Token(t=text, choice=choice):
                others[choice] = others.get(choice, "") + text
            case End() | Error():
                status.clear()
                if is_in_line or isinstance(last, End):
                    sys.stdout.write("\n")
    for choice in sorted(others):
        print(f"--- choice {choice}\n{others[choice]}")
    sys.stdout.flush()
    return last if isinstance(last, Error) else None


class _StatusLine:
    """One line on standard error that is overwritten; nothing where standard error is not a terminal."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._length = 0

    def show(self, text: str) -> None:
        if self._is_terminal:
            text = printable(text)
            print(f"\r{text:<{self._length}}", end="", file=sys.stderr, flush=True)
            self._length = len(text)

    def clear(self) -> None:
        if self._length:
            print(f"\r{'':<{self._length}}\r", end="", file=sys.stderr, flush=True)
            self._length = 0
