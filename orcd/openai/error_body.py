"""Errors as OpenAI's API tells them."""

from __future__ import annotations

import re
from typing import Any

from orcd.errors import OrcdError

_STATUS = {
    "INVALID_REQUEST": 400,
    "CONTEXT_LENGTH_EXCEEDED": 400,
    "MODEL_NOT_SERVED": 404,
    "CONFLICT": 409,
    "QUEUE_FULL": 429,
    "CANCELLED": 499,
    "REDIS_UNAVAILABLE": 503,
    "VRAM_OOM": 503,
    "ENGINE_LOST": 503,
    "INFERENCE_TIMEOUT": 504,
    "EXPIRED": 504,
}
"""HTTP status by the error's code; 500 for all others."""

_CODES = {"MODEL_NOT_SERVED": "model_not_found"}
"""Where OpenAI has a code of its own."""

_FIELD = re.compile(r"([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+|\[[0-9]+\])*)(?:: | is not supported)")


def status_code(error: OrcdError) -> int:
    """The HTTP status of an error."""
    return _STATUS.get(error.code, 500)


def error_type(status: int) -> str:
    """The ``type`` of an error with this HTTP status, as OpenAI names it: ``requests`` is too many of them."""
    if status == 429:
        return "requests"
    return "invalid_request_error" if status < 500 else "server_error"


def error_body(error: OrcdError) -> dict[str, Any]:
    """The error as a response's body; ``param`` is the field that it names."""
    status = status_code(error)
    field = _FIELD.match(error.message) if status < 500 else None
    return {
        "error": {
            "message": error.message,
            "type": error_type(status),
            "param": field[1] if field else None,
            "code": _CODES.get(error.code, error.code.lower()),
        }
    }
