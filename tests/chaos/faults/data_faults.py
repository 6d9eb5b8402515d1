"""Keys of Redis that somebody deletes, damages, or puts something else in the place of."""

from __future__ import annotations

import base64
import json
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from orcd.client import Client
from orcd.errors import OrcdError
from orcd.store import schema
from tests.chaos.clients.sync_clients import END_TIMEOUT_S
from tests.chaos.faults.fault import Fault, Scene, Staged

KEPT_S = 900
TARGETS = ("events", "async events", "result", "async result")
"""Kinds of client whose jobs are damaged: those that say what a job ended with."""


class _DamagedJob(Fault):
    """One running job's keys are damaged: that job alone may end with an error that says so."""

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Damage one job."""
        staged.target_errors = ("LOG_DAMAGED", "INVALID_REQUEST")
        active = scene.clients.active(*TARGETS)
        with scene.redis.connection() as connection:
            for job_id in scene.chance.sample([seen.job_id for seen in active], len(active)):
                if _is_running(connection, job_id) and self.fits(connection, job_id):
                    staged.targets.add(job_id)
                    self.damage(connection, job_id)
                    return

    def fits(self, connection: Any, job_id: str) -> bool:
        """Whether this job can be damaged so."""
        return True

    @abstractmethod
    def damage(self, connection: Any, job_id: str) -> None:
        """Damage this job."""


class RecordOfWrongType(_DamagedJob):
    """Its record is a string."""

    name = "record of a wrong type"

    def damage(self, connection: Any, job_id: str) -> None:
        """Put a string there."""
        connection.set(schema.job_key(job_id), "somebody's", ex=KEPT_S)


class RecordGone(_DamagedJob):
    """Its record is deleted."""

    name = "record deleted"

    def damage(self, connection: Any, job_id: str) -> None:
        """Delete it."""
        connection.delete(schema.job_key(job_id))


class LogOfWrongType(_DamagedJob):
    """Its log is a string."""

    name = "log of a wrong type"

    def damage(self, connection: Any, job_id: str) -> None:
        """Put a string there."""
        connection.set(schema.log_key(job_id), "somebody's", ex=KEPT_S)


class LogGone(_DamagedJob):
    """Its log is deleted."""

    name = "log deleted"

    def damage(self, connection: Any, job_id: str) -> None:
        """Delete it."""
        connection.delete(schema.log_key(job_id))


class LogUnreadable(_DamagedJob):
    """An entry of its log is no event."""

    name = "log entry unreadable"

    def damage(self, connection: Any, job_id: str) -> None:
        """Add one at the end."""
        connection.xadd(schema.log_key(job_id), {"e": b"\xff no event"})


class LogHole(_DamagedJob):
    """An entry in the middle of its log is missing. Who followed it live has seen it; others must refuse the log."""

    name = "log with a hole"

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Damage one job, and read its log as somebody who comes now."""
        super().stage(scene, staged)
        with Client(scene.redis.url) as client:
            for job_id in staged.targets:
                code = _how_it_ends(client, job_id)
                assert code in staged.target_errors, f"the log of {job_id} has a hole and is read as {code}"

    def fits(self, connection: Any, job_id: str) -> bool:
        """It must have a middle."""
        return int(connection.xlen(schema.log_key(job_id))) > 3

    def damage(self, connection: Any, job_id: str) -> None:
        """Delete one that is not the last."""
        (_, second, *_) = connection.xrange(schema.log_key(job_id))
        connection.xdel(schema.log_key(job_id), second[0])


class ListsDeleted(Fault):
    """The lists of messages are deleted, and the notes of those that are not acknowledged.

    A message whose job has no record yet stays: it holds the one copy of somebody's request.
    """

    name = "lists deleted"
    weight = 2

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Delete what may be deleted."""
        with scene.redis.connection() as connection:
            for key, text in queued_messages(connection):
                if _is_recorded(connection, text):
                    connection.lrem(key, 0, text)
            index = list(connection.scan_iter("*unacked*", count=1000, _type="zset"))
            for key in list(connection.scan_iter("*unacked*", count=1000, _type="hash")):
                for tag, note in connection.hgetall(key).items():
                    if _is_recorded(connection, note):
                        connection.hdel(key, tag)
                        for other in index:
                            connection.zrem(other, tag)


def _is_running(connection: Any, job_id: str) -> bool:
    """Whether a job runs; one whose record was damaged before does not count."""
    key = schema.job_key(job_id)
    return connection.type(key) == b"hash" and connection.hget(key, "state") == b"running"


def queued_messages(connection: Any) -> Iterator[tuple[bytes, bytes]]:
    """List and text of every message that waits."""
    for key in list(connection.scan_iter("*", count=1000, _type="list")):
        if b"dead" not in key and not key.startswith(b"_kombu"):
            yield from ((key, text) for text in connection.lrange(key, 0, -1))


def _how_it_ends(client: Client, job_id: str) -> str:
    """The code of the error that a reader gets, or "whole"."""
    try:
        result = client.result(job_id, timeout=END_TIMEOUT_S)
    except OrcdError as error:
        return error.code
    return result.error.code if result.error else "whole"


def _is_recorded(connection: Any, text: bytes) -> bool:
    """Whether all that a message or a note of one says is in Redis elsewhere."""
    try:
        message = json.loads(text)
        message = message[0] if isinstance(message, list) else message
        _, keywords, embed = json.loads(base64.b64decode(message["body"]))
        task_id = message["headers"]["id"]
        job_ids = keywords.get("job_ids") or [keywords.get("job_id", task_id)]
        if "requests" in keywords:
            job_ids = [f"{task_id}-{index}" for index in range(len(keywords["requests"]))]
        is_alone = not any(embed.get(name) for name in ("callbacks", "errbacks", "chain", "chord"))
        is_alone = is_alone and not message["headers"].get("group") and len(job_ids) == 1
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False
    keys = [schema.job_key(job_id) for job_id in job_ids]
    if not is_alone:
        keys += [f"orcd:{{{job_id}}}:messages" for job_id in job_ids]
    return int(connection.exists(*keys)) == len(keys)
