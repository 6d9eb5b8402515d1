"""Celery's records become log events that can hold no prompt: arguments and exception texts are left out."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from tasks.celery_ext.logging import CeleryLogHandler
from tests.tasks.worker_process import ROOT
from worker.log import EventLog

CANARY = "Kanarienvogel"


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def logger(stream: io.StringIO) -> logging.Logger:
    """A logger beside the tree of the process's own."""
    logger = logging.Logger("celery.worker")
    logger.addHandler(CeleryLogHandler(EventLog("json", "celery-1", stream)))
    return logger


def _events(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_its_template_without_the_arguments(logger: logging.Logger, stream: io.StringIO) -> None:
    logger.warning("Received unregistered task of type %s.\nThe full contents of the message body was:\n%s", 1, CANARY)
    logger.error("Task %(name)s raised %(exc)s", {"name": "tasks.generate", "exc": CANARY})
    first, second = _events(stream)
    del first["time"]
    assert first == {
        "level": "warning",
        "event": "celery",
        "worker_id": "celery-1",
        "logger": "celery.worker",
        "message": "Received unregistered task of type ....",
    }
    assert (second["level"], second["message"]) == ("error", "Task ... raised ...")
    assert CANARY not in stream.getvalue()


def test_an_exception_is_named_by_its_type_alone(logger: logging.Logger, stream: io.StringIO) -> None:
    try:
        raise ConnectionError(CANARY)
    except ConnectionError:
        logger.exception("consumer: Cannot connect to %s", f"redis://:{CANARY}@localhost")
    (event,) = _events(stream)
    assert (event["cause"], event["message"]) == ("ConnectionError", "consumer: Cannot connect to ...")
    assert CANARY not in stream.getvalue()


def test_a_record_that_is_an_exception_is_named_by_its_type_too(logger: logging.Logger, stream: io.StringIO) -> None:
    logger.error(ValueError(CANARY))
    (event,) = _events(stream)
    assert event["message"] == "ValueError"
    assert CANARY not in stream.getvalue()


def test_what_is_less_than_a_warning_is_left_out(logger: logging.Logger, stream: io.StringIO) -> None:
    logger.info("mingle: all alone")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("message", "written"),
    [("", ""), ("\n \n", ""), ("100 % of %d", "100 % of ..."), ("%-5s, %r and %.2f", "..., ... and ...")],
)
def test_odd_templates_are_written_all_the_same(
    logger: logging.Logger, stream: io.StringIO, message: str, written: str
) -> None:
    logger.warning(message)
    assert _events(stream)[0]["message"] == written


def test_in_a_worker_it_takes_the_place_of_celerys_own_logging() -> None:
    """In a process of its own: the set-up is global."""
    program = (
        "import logging, sys, tasks.celery_ext.logging, celery\n"
        "tasks.celery_ext.logging.install('json')\n"
        "celery.Celery('x', set_as_current=False).log.setup(logging.INFO)\n"
        f"logging.getLogger('celery.worker').error('went %s', '{CANARY}')\n"
        "logging.getLogger('kombu').info('ignored')\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert run.returncode == 0, run.stderr
    (line,) = run.stderr.splitlines()
    event = json.loads(line)
    assert (event["event"], event["message"], event["logger"]) == ("celery", "went ...", "celery.worker")
