"""The lines of OpenAI's Batch API: ``{"custom_id": ..., "method": "POST", "url": ..., "body": {...}}``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from orcd import request as requests
from orcd.batch.formats import json_object
from orcd.batch.formats.defaults import Defaults
from orcd.batch.formats.line_format import CallerId, FormatName, ParsedRecord, Record, filled
from orcd.errors import InvalidRequest
from orcd.openai.endpoints import parse_body

_MEMBERS = ("custom_id", "method", "url", "body")


class OpenaiLines:
    """See `LineFormat`."""

    name: ClassVar[FormatName] = "openai"

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
        members = json_object.fields_of(record)
        for name in members:
            if name not in _MEMBERS:
                raise InvalidRequest(f"{name[:80]}: unknown field; a line has {', '.join(_MEMBERS)}")
        custom_id, method, url, body = map(members.get, _MEMBERS)
        if not isinstance(custom_id, str) or not custom_id:
            raise InvalidRequest("custom_id: must be a text that tells this line from the others")
        if method != "POST":
            raise InvalidRequest("method: must be POST")
        if not isinstance(url, str):
            raise InvalidRequest("url: must be a text, such as /v1/chat/completions")
        if not isinstance(body, dict):
            raise InvalidRequest("body: must be an object, the body of the request")
        body = self._defaults.with_system(body)
        request = parse_body(url, body, self._defaults.fields)
        requests.encode(request)  # refuses what JSON or UTF-8 cannot express
        return ParsedRecord(custom_id, request, url, body)
