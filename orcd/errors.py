"""Every error a user of orcd can meet, with its stable code.

::

    OrcdError                     INTERNAL
    ├── InvalidRequest            INVALID_REQUEST
    │   └── ContextLengthExceeded CONTEXT_LENGTH_EXCEEDED
    ├── ModelLoadFailed           MODEL_LOAD_FAILED
    │   └── InsufficientVram      INSUFFICIENT_VRAM
    ├── VramOom                   VRAM_OOM                 (retriable)
    ├── CudaError                 CUDA_ERROR               (retriable)
    ├── InferenceTimeout          INFERENCE_TIMEOUT
    ├── Cancelled                 CANCELLED
    ├── Conflict                  CONFLICT
    ├── Expired                   EXPIRED
    ├── EngineLost                ENGINE_LOST              (retriable)
    ├── LogDamaged                LOG_DAMAGED
    ├── ModelNotServed            MODEL_NOT_SERVED
    ├── Poisoned                  POISONED
    ├── QueueFull                 QUEUE_FULL               (retriable)
    └── RedisUnavailable          REDIS_UNAVAILABLE        (retriable)

The codes are part of the wire format (job records, ``error`` events, exit messages): never rename one.
Messages are one line, say what to do, and hold no prompt, no answer and no secret.
``retriable`` says whether the same request may succeed when it is submitted again unchanged.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "Cancelled",
    "Conflict",
    "ContextLengthExceeded",
    "CudaError",
    "EngineLost",
    "Expired",
    "InferenceTimeout",
    "InsufficientVram",
    "InvalidRequest",
    "LogDamaged",
    "ModelLoadFailed",
    "ModelNotServed",
    "OrcdError",
    "Poisoned",
    "QueueFull",
    "RedisUnavailable",
    "VramOom",
]
"""The classes, which ``orcd`` has too."""


class OrcdError(Exception):
    """Base of all errors with a stable code; on its own, a bug of ours (``INTERNAL``)."""

    code = "INTERNAL"
    retriable = False

    @property
    def message(self) -> str:
        """The error as one line, without the code."""
        return " ".join(str(self).split())


class InvalidRequest(OrcdError):
    """The caller's mistake; the message names the field."""

    code = "INVALID_REQUEST"


class ContextLengthExceeded(InvalidRequest):
    """Prompt plus requested output do not fit the model's context."""

    code = "CONTEXT_LENGTH_EXCEEDED"


class ModelLoadFailed(OrcdError):
    """The model file cannot be used; the message names the file, key or tensor."""

    code = "MODEL_LOAD_FAILED"


class InsufficientVram(ModelLoadFailed):
    """The model's allocation plan does not fit the device."""

    code = "INSUFFICIENT_VRAM"


class VramOom(OrcdError):
    """A request can never fit the KV cache that this worker was given."""

    code = "VRAM_OOM"
    retriable = True


class CudaError(OrcdError):
    """A kernel launch or an asynchronous device error; the message names the kernel."""

    code = "CUDA_ERROR"
    retriable = True


class InferenceTimeout(OrcdError):
    """The job ran longer than its time limit, or got no token for longer than its worker's stall limit."""

    code = "INFERENCE_TIMEOUT"


class Cancelled(OrcdError):
    """Somebody cancelled the job."""

    code = "CANCELLED"


class Conflict(OrcdError):
    """The job id, or the idempotency key, belongs to another request already."""

    code = "CONFLICT"


class Expired(OrcdError):
    """The job's ``deadline_s`` passed before it finished, or its limit in the queue before a worker took it."""

    code = "EXPIRED"


class EngineLost(OrcdError):
    """The engine process died and could not be brought back."""

    code = "ENGINE_LOST"
    retriable = True


class LogDamaged(OrcdError):
    """What Redis holds of the job cannot be used: its token log has a hole, or its keys cannot be read."""

    code = "LOG_DAMAGED"


class ModelNotServed(OrcdError):
    """No worker serves the job's model: it waited as long as it may, or was submitted with ``fail_fast``."""

    code = "MODEL_NOT_SERVED"


class Poisoned(OrcdError):
    """The job took down its engine or worker too many times and is not tried again."""

    code = "POISONED"


class QueueFull(OrcdError):
    """As many jobs wait as may; submit again after ``retry_after_s`` seconds.

    ``stored`` are the ids of the jobs of the same call that were stored all the same.
    """

    code = "QUEUE_FULL"
    retriable = True
    retry_after_s = 5.0

    def __init__(self, message: str, stored: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.stored = tuple(stored)


class RedisUnavailable(OrcdError):
    """Redis cannot be reached or refuses to work; the message holds its address without the password."""

    code = "REDIS_UNAVAILABLE"
    retriable = True


def _tree(root: type[OrcdError]) -> list[type[OrcdError]]:
    return [root, *(error for child in root.__subclasses__() for error in _tree(child))]


BY_CODE: dict[str, type[OrcdError]] = {error.code: error for error in _tree(OrcdError)}
"""Stable code -> exception class; how an error is rebuilt on the other side of a wire."""


def printable(text: str) -> str:
    """``text`` as one line, with escapes for what a terminal would obey: names and messages may come from anybody."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


NOT_UTF_8 = "a text, name or path of the command or of the environment is not valid UTF-8"
"""What a command line says of a `UnicodeEncodeError`, whose own text may hold a prompt."""


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can express it. What is no UTF-8 on a command line, in a path or the environment it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def places(error: BaseException) -> list[str]:
    """Where an exception passed, outermost first, as ``file:line``: what may be logged of one whose text may not."""
    return [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
