"""What orcd keeps in Redis, and the scripts that write it.

docs/protocol.md lists the keys and fields, and says what each script compares and writes. The scripts of jobs begin
with ``prelude``, where the names of a job's keys are made of its id. Those about messages (`celery_script`) do not.

With ``ORCD_KEY_PREFIX`` set, all keys and channels begin with that ``prefix``, so that systems can share a database.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple

QUEUED = "orcd:queued"
RUNNING = "orcd:running"
UNANSWERED = "orcd:unanswered"
SERVED = "orcd:served"
READY = "orcd:ready"
MAX_QUEUED = "orcd:max_queued"
CONTACT = "orcd:contact"
COUNTING = "orcd:counting"
QUEUE_FIGURES = "orcd:queue_figures"
CONTROL = "orcd:control"
WORKERS = "orcd:workers"
WAKE = "orcd:wake"
RECEIVERS = "orcd:receivers"
AGES = "orcd:ages"
EMPTIED = "orcd:emptied"
UNACKED = "orcd:unacked:"
"""What `unacked_key` begins with."""
DEAD = "orcd:dead"
BATCHES = "orcd:batches"

STATES = ("queued", "running", "succeeded", "failed", "cancelled", "expired")
TERMINAL_STATES = frozenset(STATES[2:])


def job_key(job_id: str, prefix: str = "") -> str:
    """The job's record."""
    return f"{prefix}orcd:{{{job_id}}}:job"


def log_key(job_id: str, prefix: str = "") -> str:
    """The job's token log."""
    return f"{prefix}orcd:{{{job_id}}}:log"


def messages_key(job_id: str, prefix: str = "") -> str:
    """The messages that somebody must answer for the job."""
    return f"{prefix}orcd:{{{job_id}}}:messages"


def events_channel(job_id: str, prefix: str = "") -> str:
    """Where the job's events are published as they are logged."""
    return f"{prefix}orcd:{{{job_id}}}:events"


def worker_key(name: str, prefix: str = "") -> str:
    """A worker's last heartbeat."""
    return f"{prefix}orcd:worker:{{{name}}}"


def rate_key(tag: str, window: int, prefix: str = "") -> str:
    """How many requests an API key has made in one window of time."""
    return f"{prefix}orcd:rate:{tag}:{window}"


def batch_key(batch_id: str, prefix: str = "") -> str:
    """A gateway's record of a batch."""
    return f"{prefix}orcd:batch:{{{batch_id}}}"


def batches_of_key(tag: str, prefix: str = "") -> str:
    """The batches of one API key, by when they were made."""
    return f"{prefix}orcd:batches:{tag}"


def unacked_key(receiver: str, prefix: str = "") -> str:
    """The messages that a receiver has taken and not acknowledged."""
    return f"{prefix}{UNACKED}{{{receiver}}}"


@cache
def script(name: str, prefix: str = "") -> str:
    """The script ``orcd/store/lua/<name>.lua``, with what it uses of ``prelude.lua`` in front.

    Redis runs all of the text with each call, and each definition takes its time.
    """
    text = _text(name)
    words = _words(text)
    for definition in reversed(_definitions()):  # a function uses only those before it
        if definition.name in words:
            text = definition.text + text
            words |= definition.words
    return f"local prefix = '{prefix}'\n" + text


@cache
def celery_script(name: str) -> str:
    """A script about messages: without the prelude, as it is sent whole with each call."""
    return _text(name)


class _Definition(NamedTuple):
    name: str
    text: str
    words: set[str]


@cache
def _definitions() -> list[_Definition]:
    """The functions of the prelude with their comments."""
    texts = re.findall(r"(?:^--.*\n)*^local function \w+\((?:.*\n)+?^end\n", _text("prelude"), re.MULTILINE)
    names = (re.findall(r"^local function (\w+)", text, re.MULTILINE)[0] for text in texts)
    return [_Definition(name, text, _words(text)) for name, text in zip(names, texts, strict=True)]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def _text(name: str) -> str:
    return files("orcd.store").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
