"""Celery's own log records as log events.

Only the first line of a record's template is written, with ``...`` for its arguments: those may hold a message's body,
and an inline request has its prompt in it; or the URL of Redis with its password.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from typing import Any

from celery import signals
from celery.platforms import SecurityWarning

from worker.log import EventLog

_PLACEHOLDER = re.compile(r"%(\(\w+\))?[-#0+]*[\d.]*[diouxXeEfFgGcrsa]|\{\w*\}")


class CeleryLogHandler(logging.Handler):
    """Writes records as ``celery`` events: level, logger, what happened and the exception's type."""

    def __init__(self, log: EventLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        error = record.exc_info[0] if record.exc_info else None
        template = record.msg if isinstance(record.msg, str) else type(record.msg).__name__  # logger.error(exception)
        self._log.event(
            "celery",
            level=record.levelname.lower(),
            logger=record.name,
            message=_PLACEHOLDER.sub("...", (template.strip().splitlines() or [""])[0]),
            cause=error.__name__ if error else None,
        )


def install(log_format: str) -> None:
    """Make this the logging of a Celery worker, in place of Celery's set-up."""

    def set_up(**_: Any) -> None:
        root = logging.getLogger()
        root.handlers = [CeleryLogHandler(EventLog(log_format, f"celery-{os.getpid()}"))]
        root.setLevel(logging.WARNING)

    # It warns of root because of pickled messages; this app accepts JSON only.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    signals.setup_logging.connect(set_up, weak=False)
