"""What the formats of results have in common."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from orcd.batch.line import Line, LineName
from orcd.errors import OrcdError
from orcd.result import Result


class ResultFormat(Protocol):
    """How a line of OUTPUT and of the error file looks."""

    START: ClassVar[bytes]
    """What every result begins with: a torn one can be told from somebody's notes."""

    def result(self, line: Line, result: Result) -> dict[str, Any]:
        """The result of a job that succeeded."""

    def failure(self, name: LineName, error: OrcdError) -> dict[str, Any]:
        """Why a line has no result."""

    def job_id(self, text: bytes) -> str:
        """The id of the job that a line of OUTPUT is the result of. Raises ValueError if it is none."""
