"""A request of a batch on its way, and what is known of a line that has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orcd.batch.formats.line_format import CallerId
from orcd.batch.place import Place
from orcd.request import Request


@dataclass(frozen=True, slots=True)
class LineName:
    """What a line is called in results and errors; ``file`` is None where there is one input only.

    ``job_id`` is None for a line that never became a job.
    """

    place: Place
    file: str | None
    id: CallerId
    job_id: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is a request; ``url`` and ``body`` are those of an OpenAI one.

    ``created_s`` is when it was read, in Unix seconds; ``num_bytes`` its length in the file.
    """

    name: LineName
    digest: int
    job_id: str
    request: Request
    url: str
    body: Mapping[str, Any]
    created_s: int
    num_bytes: int
