"""Results and errors as OpenAI's Batch API writes them.

A line of the error file has, besides, the number of the input line (``line``) and, of several inputs, the ``file``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from orcd.batch.line import Line, LineName
from orcd.errors import Cancelled, Expired, OrcdError
from orcd.openai.endpoints import response_body
from orcd.openai.error_body import error_body, status_code
from orcd.result import Result

_PREFIX = "batch_req_"
_NO_RESPONSE = {Cancelled.code: "batch_cancelled", Expired.code: "batch_expired"}
"""Codes of jobs that nobody answered."""


class OpenaiResults:
    """See `ResultFormat`."""

    START: ClassVar = b'{"id":"batch_req_'

    def result(self, line: Line, result: Result) -> dict[str, Any]:
        """See `ResultFormat`."""
        body = response_body(line.url, line.body, result, line.created_s)
        return _line(line.name, {"status_code": 200, "request_id": result.job_id, "body": body}, None)

    def failure(self, name: LineName, error: OrcdError) -> dict[str, Any]:
        """See `ResultFormat`."""
        file = {} if name.file is None else {"file": name.file}
        if name.job_id is None or error.code in _NO_RESPONSE:
            code = _NO_RESPONSE.get(error.code, error.code.lower())
            written = _line(name, None, {"code": code, "message": error.message})
        else:
            response = {"status_code": status_code(error), "request_id": name.job_id, "body": error_body(error)}
            written = _line(name, response, None)
        return {**written, "line": name.place.number, **file}

    def job_id(self, text: bytes) -> str:
        """See `ResultFormat`."""
        written = _written.decode(text)
        return written.id.removeprefix(_PREFIX)


def _line(name: LineName, response: dict[str, Any] | None, error: dict[str, Any] | None) -> dict[str, Any]:
    """An OpenAI line; a request of a format without custom_ids has its place for one."""
    custom_id = name.id if name.id is not None or name.job_id is None else name.place
    return {
        "id": _PREFIX + (name.job_id or f"line-{name.place}"),
        "custom_id": None if custom_id is None else str(custom_id),
        "response": response,
        "error": error,
    }


class _Written(msgspec.Struct):
    id: str
    custom_id: str


_written = msgspec.json.Decoder(_Written)
