"""orcd's own lines: an object with the fields of a request (`orcd.request`) and an optional ``id`` or ``custom_id``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from orcd.batch.formats import json_object
from orcd.batch.formats.defaults import Defaults
from orcd.batch.formats.line_format import CallerId, FormatName, ParsedRecord, Record, filled, parse_fields
from orcd.errors import InvalidRequest


class OrcdLines:
    """See `LineFormat`."""

    name: ClassVar[FormatName] = "orcd"

    def __init__(self, defaults: Defaults) -> None:
        self._defaults = defaults

    def records(self, lines: Iterable[tuple[int, bytes]]) -> Iterator[Record]:
        """See `LineFormat`."""
        return filled(lines)

    def caller_id(self, record: Record) -> CallerId:
        """See `LineFormat`."""
        return json_object.id_in(record)

    def parse(self, record: Record) -> ParsedRecord:
        """See `LineFormat`."""
        fields = json_object.fields_of(record)
        ids = [fields.pop(name) for name in ("id", "custom_id") if name in fields]
        if len(ids) > 1 or not all(map(json_object.is_caller_id, ids)):
            raise InvalidRequest("id: give one id (or custom_id), a string or a whole number")
        return parse_fields(ids[0] if ids else None, self._defaults.apply(fields))
