"""What applications import to enqueue generation jobs and to read their answers: ``from orcd import Client``.

Clients, requests, results, events, prompt files and the command line. All names but those of the errors are loaded when
they are first used; importing this package loads no worker.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from orcd import errors
from orcd.errors import *  # noqa: F403  (the error classes, of which a new one is named in orcd.errors only)

if TYPE_CHECKING:
    from orcd.async_client import AsyncClient
    from orcd.client import Client
    from orcd.request import Request, RequestFields
    from orcd.result import Choice, Result
    from orcd.status import JobSummary, QueueStatus, Status, WaitEstimate, WorkerStatus

__all__ = ["AsyncClient", "Choice", "Client", "JobSummary", "QueueStatus", "Request", "RequestFields", "Result"]
__all__ += ["Status", "WaitEstimate", "WorkerStatus"]
__all__ += errors.__all__

_MODULES = {
    "AsyncClient": "async_client",
    "Choice": "result",
    "Client": "client",
    "JobSummary": "status",
    "QueueStatus": "status",
    "Request": "request",
    "RequestFields": "request",
    "Result": "result",
    "Status": "status",
    "WaitEstimate": "status",
    "WorkerStatus": "status",
}
"""Where a name is defined."""


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
