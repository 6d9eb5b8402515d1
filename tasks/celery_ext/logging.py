"""Celery's and kombu's own log records as log events.

Of a record's template the first line is written, and of its arguments those that can hold no text of a user: numbers,
the names of this worker's tasks and queues, job ids, the address of Redis without its password, and of an exception its
type and place. In place of the others stand three dots: they may be a message's body, and an inline request has its
prompt in it.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from celery import signals
from celery.platforms import SecurityWarning

from orcd.errors import InvalidRequest, places
from orcd.store.redis_address import RedisAddress
from orcd.store.submission import is_well_formed
from worker.log import EventLog

HIDDEN = "..."
_PLACEHOLDER = re.compile(r"%(?:\((\w+)\))?[-#0+]*[\d.]*[diouxXeEfFgGcrsa]|\{\w*\}")


class CeleryLogHandler(logging.Handler):
    """Writes records as ``celery`` events: level, logger, what happened, and an exception's type and places.

    ``names`` may be written where they are arguments; an address is among them as it is without a password.
    """

    def __init__(self, log: EventLog, names: Collection[str] = ()) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._names = frozenset(names)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        error = record.exc_info[1] if record.exc_info else None
        self._log.event(
            "celery",
            level=record.levelname.lower(),
            logger=record.name,
            message=self._message(record),
            cause=type(error).__name__ if error else None,
            where=places(error) if error else None,
        )

    def _message(self, record: logging.LogRecord) -> str:
        if not isinstance(record.msg, str):  # logger.error(exception)
            return self._shown(record.msg)
        line = (record.msg.strip().splitlines() or [""])[0]
        arguments = record.args or ()
        in_order: Iterator[Any] = iter(() if isinstance(arguments, Mapping) else arguments)

        def fill(placeholder: re.Match[str]) -> str:
            name = placeholder[1]
            if isinstance(arguments, Mapping):
                value = arguments.get(name or "")
                return value if name == "id" and is_well_formed(value) else self._shown(value)
            return HIDDEN if placeholder[0].startswith("{") else self._shown(next(in_order, None))

        return _PLACEHOLDER.sub(fill, line)

    def _shown(self, value: Any) -> str:
        match value:
            case bool() | int() | float():
                return f"{value:g}" if isinstance(value, float) else str(value)
            case BaseException():
                passed = places(value)
                return type(value).__name__ + (f" at {passed[-1]}" if passed else "")
            case str() if value in self._names:
                return value
            case str() if "://" in value:
                address = _without_password(value)
                return address if address in self._names else HIDDEN
        return HIDDEN


def _without_password(url: str) -> str:
    try:
        return str(RedisAddress.parse(url))
    except InvalidRequest:
        return ""


def install(log_format: str, names: Collection[str]) -> None:
    """Make this the logging of a Celery worker, in place of Celery's set-up."""

    def set_up(**_: Any) -> None:
        root = logging.getLogger()
        root.handlers = [CeleryLogHandler(EventLog(log_format, f"celery-{os.getpid()}"), names)]
        root.setLevel(logging.WARNING)

    # It warns of root because of pickled messages; this app accepts JSON only.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    signals.setup_logging.connect(set_up, weak=False)
