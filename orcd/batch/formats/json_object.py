"""Lines that are JSON objects, as the formats ``orcd`` and ``openai`` have them."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from orcd.batch.formats.line_format import CallerId, Record, check_length
from orcd.errors import InvalidRequest

_ID = re.compile(rb'"(?:custom_)?id"\s*:\s*("(?:[^"\\]|\\.){0,512}"|-?\d{1,18}(?=\s*[,}]))')
_ids = msgspec.json.Decoder(dict[str, msgspec.Raw])
_values = msgspec.json.Decoder()


def fields_of(record: Record) -> dict[str, Any]:
    """The object on a line. Raises `InvalidRequest` if there is none."""
    check_length(record)
    try:
        fields = _values.decode(record.text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("the line is not valid JSON in UTF-8") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("the line must be an object of named fields")
    return fields


def id_in(record: Record) -> CallerId:
    """The value of ``id`` or ``custom_id`` of the object on a line.

    On a line that is no JSON the first thing that looks like one, so that its owner can find the line.
    """
    try:
        members = _ids.decode(record.text)
        found = members.get("custom_id", members.get("id"))
        text = b"" if found is None else bytes(found)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        match = _ID.search(record.text)
        text = match[1] if match else b""
    try:
        value = _values.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if is_caller_id(value) else None


def is_caller_id(value: Any) -> bool:
    """Whether a value can name a line: a string, a whole number or None."""
    return isinstance(value, str | int | None) and not isinstance(value, bool)
