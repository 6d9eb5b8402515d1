"""Answers as lines of JSON on standard output."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec

from orcd import jsonl
from orcd.errors import OrcdError

Request = TypeVar("Request", bound=msgspec.Struct)


def write_json(record: Any) -> None:
    """One JSON object on standard output, at once."""
    _write_line(jsonl.encode(record))


def answer_lines(source: Iterable[bytes], kind: type[Request], answer: Callable[[Request], Any]) -> None:
    """Write one line for each one of ``source``: the answer to a request of ``kind``, or ``{"error": message}``.

    Empty lines are skipped.
    """
    decoder = msgspec.json.Decoder(kind)
    for text in source:
        if not text.strip():
            continue
        try:
            line = jsonl.encode(answer(decoder.decode(text)))
        except OrcdError as error:
            line = jsonl.encode({"error": error.message})
        except msgspec.ValidationError as error:
            line = jsonl.encode({"error": str(error)})
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            line = jsonl.encode({"error": "the line is not valid JSON in UTF-8"})
        _write_line(line)


def _write_line(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
