"""What applications import to enqueue generation jobs and to read their answers: ``from orcd import Client``.

Clients, requests, results, events, prompt files and the command line. Names are loaded when they are first used;
importing this package loads no worker.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orcd.async_client import AsyncClient
    from orcd.client import Client
    from orcd.errors import (
        Cancelled,
        ContextLengthExceeded,
        CudaError,
        EngineLost,
        Expired,
        InferenceTimeout,
        InsufficientVram,
        InvalidRequest,
        ModelLoadFailed,
        OrcdError,
        Poisoned,
        RedisUnavailable,
        VramOom,
    )
    from orcd.request import Request, RequestFields
    from orcd.result import Choice, Result
    from orcd.status import Status, WorkerStatus

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Choice",
    "Client",
    "ContextLengthExceeded",
    "CudaError",
    "EngineLost",
    "Expired",
    "InferenceTimeout",
    "InsufficientVram",
    "InvalidRequest",
    "ModelLoadFailed",
    "OrcdError",
    "Poisoned",
    "RedisUnavailable",
    "Request",
    "RequestFields",
    "Result",
    "Status",
    "VramOom",
    "WorkerStatus",
]

_MODULES = {
    "AsyncClient": "async_client",
    "Choice": "result",
    "Client": "client",
    "Request": "request",
    "RequestFields": "request",
    "Result": "result",
    "Status": "status",
    "WorkerStatus": "status",
}
"""Where a name is defined; all others are errors."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
