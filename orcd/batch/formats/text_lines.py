"""Plain text: each line is the message of a user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from orcd.batch.formats.defaults import Defaults
from orcd.batch.formats.line_format import (
    CallerId,
    FormatName,
    ParsedRecord,
    Record,
    check_length,
    filled,
    parse_fields,
)
from orcd.errors import InvalidRequest


class TextLines:
    """See `LineFormat`."""

    name: ClassVar[FormatName] = "text"

    def __init__(self, defaults: Defaults) -> None:
        self._defaults = defaults

    def records(self, lines: Iterable[tuple[int, bytes]]) -> Iterator[Record]:
        """See `LineFormat`."""
        return filled(lines)

    def caller_id(self, record: Record) -> CallerId:
        """See `LineFormat`; lines of text have no names."""

    def parse(self, record: Record) -> ParsedRecord:
        """See `LineFormat`."""
        check_length(record)
        try:
            message = {"role": "user", "content": record.text.decode()}
        except UnicodeDecodeError:
            raise InvalidRequest("the line is not valid text in UTF-8") from None
        return parse_fields(None, self._defaults.apply({"messages": [message]}))
