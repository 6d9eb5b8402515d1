"""What the formats of prompt files have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from orcd import request as requests
from orcd.errors import InvalidRequest
from orcd.request import MAX_REQUEST_BYTES, Request

FormatName = Literal["orcd", "openai", "text", "csv"]
CallerId = str | int | None
"""The caller's own name for a line."""


@dataclass(frozen=True, slots=True)
class Record:
    """What makes one request: a line without the space around it, or a row of a table, which may be several lines.

    ``number`` is that of its first line and counts from 1.
    """

    number: int
    text: bytes


@dataclass(frozen=True, slots=True)
class ParsedRecord:
    """A record that has been understood and checked.

    ``url`` and ``body`` are those of an OpenAI line, and what an orcd one would have been there.
    """

    id: CallerId
    request: Request
    url: str
    body: Mapping[str, Any]


class LineFormat(Protocol):
    """One format, for one file: a table's has the columns of that file."""

    name: ClassVar[FormatName]

    def records(self, lines: Iterable[tuple[int, bytes]]) -> Iterator[Record]:
        """The records of a file's lines, which come with their numbers; empty ones are left out.

        Raises `InvalidRequest` if the file as a whole cannot be used.
        """

    def caller_id(self, record: Record) -> CallerId:
        """The caller's name for a record, also for one that is broken, if it can be made out."""

    def parse(self, record: Record) -> ParsedRecord:
        """Raises `InvalidRequest` naming the field."""


def filled(lines: Iterable[tuple[int, bytes]]) -> Iterator[Record]:
    """A record for each line that is not empty."""
    for number, line in lines:
        if text := line.strip():
            yield Record(number, text)


def check_length(record: Record) -> None:
    """Raises `InvalidRequest` for a record longer than any request (the reader has cut it)."""
    if len(record.text) > MAX_REQUEST_BYTES:
        raise InvalidRequest(f"the line is longer than {MAX_REQUEST_BYTES} bytes")


def parse_fields(caller_id: CallerId, fields: dict[str, Any]) -> ParsedRecord:
    """A record of orcd's own fields. Raises `InvalidRequest` naming the field."""
    request = requests.parse(fields)
    requests.encode(request)  # refuses what JSON or UTF-8 cannot express
    url = "/v1/completions" if request.messages is None else "/v1/chat/completions"
    return ParsedRecord(caller_id, request, url, {"model": request.model})
