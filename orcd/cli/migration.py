"""Moves messages that were sent to the queues of earlier versions.

Those with jobs for any model were in ``celery``, which every Celery application uses; no worker of ours reads it any
more. Those of a model were in ``orcd.NAME`` with the name as it is, where now some characters are escaped.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orcd.request import Request
from orcd.store import schema
from orcd.store.broker import PRIORITIES
from orcd.store.commands.redis_script import RedisScript
from orcd.store.enqueue import queue_name

TASKS = frozenset({"orcd.generate", "orcd.generate_chunk"})
OLD_TASKS = frozenset({"tasks.generate", "tasks.generate_chunk"})
"""Names that another application may have for tasks of its own, in a module called ``tasks``."""
ARGUMENTS = frozenset({"job_id", "job_ids", "requests", *Request.__struct_fields__})
OLD_QUEUE = "celery"
PAGE = 100


@dataclass(frozen=True, slots=True)
class Moved:
    """Messages that were moved, or would be: how many, and between which lists."""

    num_messages: int
    source: str
    target: str


class Migration:
    """Moves the messages in one Redis. Every method may raise `redis.RedisError`.

    Each message is in one of the two lists at any moment, and messages keep their order. Those of other applications
    stay where they are. It may run beside workers and senders, and again.
    """

    def __init__(self, connection: Any) -> None:
        self._redis = connection
        self._move_script = RedisScript(connection, schema.celery_script("move"))

    def run(self, *, dry: bool = False) -> Iterator[Moved]:
        """Move what is to be moved, or with ``dry`` only count it; yields every list that had any."""
        for source in self._old_lists():
            queue, priority = _split(source)
            model = queue.removeprefix("orcd.") if queue != OLD_QUEUE else None
            num_moved = 0
            while num := self._pass_over(source, queue_name(model), priority, dry):
                num_moved += num
                if dry:
                    break
            if num_moved:
                yield Moved(num_moved, source, queue_name(model) + priority)

    def _old_lists(self) -> list[str]:
        """The lists of old queues that there are, the most urgent priority first."""
        names = [OLD_QUEUE + (f":{priority}" if priority else "") for priority in PRIORITIES]
        keys = self._redis.scan_iter("orcd.*", count=1000, _type="list")
        found = (key.decode(errors="replace") for key in keys)
        return names + sorted(name for name in found if not _is_current(name) and "\ufffd" not in name)

    def _pass_over(self, source: str, queue: str, priority: str, dry: bool) -> int:
        """Go through a list once, the oldest message first, which is the last; returns how many were moved."""
        num_moved = num_left = 0
        while page := self._redis.lrange(source, -num_left - PAGE, -num_left - 1):
            for text in reversed(page):
                new_text = readdressed(text, queue)
                if new_text is not None and (dry or self._move_script([source, queue + priority], [text, new_text])):
                    num_moved += 1
                if new_text is None or dry:
                    num_left += 1
        return num_moved


def readdressed(text: bytes, queue: str) -> bytes | None:
    """The message with another queue for its address; None if it is none of ours, or cannot be read."""
    try:
        message = json.loads(text)
        task = message["headers"]["task"]
        if task not in TASKS and not (task in OLD_TASKS and _has_our_arguments(message)):
            return None
        message["properties"]["delivery_info"] = {"exchange": "", "routing_key": queue}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return json.dumps(message).encode()


def _has_our_arguments(message: dict[str, Any]) -> bool:
    args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
    return not args and isinstance(kwargs, dict) and bool(kwargs) and kwargs.keys() <= ARGUMENTS


def _split(name: str) -> tuple[str, str]:
    """A list's queue, and what says its priority."""
    found = re.fullmatch(r"(.*?)(:[1-9])?", name, re.DOTALL)
    assert found is not None, "it matches everything"
    return found[1], found[2] or ""


def _is_current(name: str) -> bool:
    """Whether a list ``orcd.NAME`` has its name as it would be now: then there is nothing to do."""
    return re.fullmatch(r"orcd\.([A-Za-z0-9_.-]|%[0-9A-F]{2})*(:[1-9])?", name) is not None
