"""Celery's records become log events that can hold no prompt: only arguments that are none are written."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from typing import Any

import pytest

from tasks.celery_ext.logging import CeleryLogHandler
from tests.tasks.worker_process import ROOT
from worker.log import EventLog

CANARY = "Kanarienvogel"
NAMES = {"orcd.generate", "orcd", "redis://user:**@box:6379/1"}


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def logger(stream: io.StringIO) -> logging.Logger:
    """A logger beside the tree of the process's own."""
    logger = logging.Logger("celery.worker")
    logger.addHandler(CeleryLogHandler(EventLog("json", "celery-1", stream), NAMES))
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
        "message": "Received unregistered task of type 1.",
    }
    assert (second["level"], second["message"]) == ("error", "Task ... raised ...")
    assert CANARY not in stream.getvalue()


def test_arguments_that_can_hold_no_text_of_a_user_are_written(logger: logging.Logger, stream: io.StringIO) -> None:
    logger.warning("%s of %r: %d after %.1f s, %s", "orcd.generate", "orcd", 3, 1.5, True)
    logger.warning("Task %(name)s[%(id)s]: %(exc)s", {"name": "orcd.generate", "id": "job-1", "exc": CANARY})
    logger.warning("Task %(name)s[%(id)s]", {"name": CANARY, "id": f"{CANARY} sings"})
    logger.warning("%s, %s, %s", f"redis://user:{CANARY}@box:6379/1", f"amqp://{CANARY}@box", f"redis://{CANARY}")
    logger.warning("no argument for %s, and a list: %s", [CANARY], {CANARY: 1})
    assert [event["message"] for event in _events(stream)] == [
        "orcd.generate of orcd: 3 after 1.5 s, True",
        "Task orcd.generate[job-1]: ...",
        "Task ...[...]",
        "redis://user:**@box:6379/1, ..., ...",
        "no argument for ..., and a list: ...",
    ]
    assert CANARY not in stream.getvalue()


def test_an_exception_among_the_arguments_is_its_type_and_place(logger: logging.Logger, stream: io.StringIO) -> None:
    try:
        raise KeyError(CANARY)
    except KeyError as error:
        logger.error("it failed: %r, and %s", error, ValueError(CANARY))
    (event,) = _events(stream)
    assert re.fullmatch(r"it failed: KeyError at test_logging\.py:\d+, and ValueError", event["message"])


def test_an_exception_is_named_by_its_type_and_places(logger: logging.Logger, stream: io.StringIO) -> None:
    try:
        raise ConnectionError(CANARY)
    except ConnectionError:
        logger.exception("consumer: Cannot connect to %s", f"redis://user:{CANARY}@box:6379/1")
    (event,) = _events(stream)
    assert (event["cause"], event["message"]) == (
        "ConnectionError",
        "consumer: Cannot connect to redis://user:**@box:6379/1",
    )
    [place] = event["where"]
    assert place.startswith("test_logging.py:")
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
        "tasks.celery_ext.logging.install('json', ())\n"
        "celery.Celery('x', set_as_current=False).log.setup(logging.INFO)\n"
        f"logging.getLogger('celery.worker').error('went %s', '{CANARY}')\n"
        "logging.getLogger('kombu').info('ignored')\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    (line,) = run.stderr.splitlines()
    event = json.loads(line)
    assert (event["event"], event["message"], event["logger"]) == ("celery", "went ...", "celery.worker")
