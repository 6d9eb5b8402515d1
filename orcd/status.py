"""What Redis knows of a job and of a worker right now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import redis

from orcd.errors import InvalidRequest
from orcd.events import Position
from orcd.store.token_log import damaged

FIELDS = ("state", "owner", "model", "attempt", "priority", "cancel", "created_ms", "started_ms", "finished_ms")
"""Fields of the job record that `Status.read` wants, in this order."""


class Look(msgspec.Struct, frozen=True):
    """What the look script found: the job's state, its place in the queue (from 0), whether a worker serves that.

    ``end`` is the JSON of the terminal event, b"" where the record has none; ``reason`` says why a queued job waits.
    """

    state: str
    rank: int | None
    served: bool
    end: bytes
    reason: str = ""

    @classmethod
    def read(cls, job_id: str, answer: Any) -> Look:
        """From the script's answer, which may be an error to raise.

        Raises `InvalidRequest` if there is no such job that we can read, `LogDamaged` if its record cannot be used.
        """
        if isinstance(answer, redis.RedisError):
            raise answer
        state, rank, served, end, reason = answer
        check_state(job_id, state)
        return cls(state.decode(), None if rank < 0 else rank, served == 1, end, reason.decode())


class Status(msgspec.Struct, frozen=True):
    """A job's place in its life. Times are Unix milliseconds of the Redis clock, None for what has not happened.

    ``position`` counts from 1 while the job is queued and is approximate. ``attempt`` counts claims. ``cancelling``
    says that somebody wants it cancelled. ``tokens_out`` counts the tokens in the log, over all choices. ``served`` is
    false for a queued job while no worker serves the model that it asks for.
    """

    job_id: str
    state: str
    position: int | None
    attempt: int
    worker: str | None
    model: str | None
    priority: int
    cancelling: bool
    tokens_out: int
    created_ms: int
    started_ms: int | None
    finished_ms: int | None
    served: bool = True

    @classmethod
    def read(
        cls,
        job_id: str,
        look: Look,
        values: Sequence[bytes | None] | None,
        last_entries: Sequence[tuple[bytes, Any]] | None,
    ) -> Status:
        """From a look at the job, the values of `FIELDS` after it, and the last log entry, if there is one.

        Raises `InvalidRequest` if there is no such job, `LogDamaged` if its record cannot be read. A log that cannot be
        used (None) counts as empty.
        """
        if values is None:
            raise damaged(job_id)
        record = {name: value.decode() for name, value in zip(FIELDS, values, strict=True) if value is not None}
        if "state" not in record:
            raise unknown_job(job_id)
        try:
            return cls._read(job_id, look, record, last_entries)
        except (KeyError, ValueError):
            raise damaged(job_id) from None

    @classmethod
    def _read(
        cls, job_id: str, look: Look, record: dict[str, str], last_entries: Sequence[tuple[bytes, Any]] | None
    ) -> Status:
        is_queued = record["state"] == "queued"
        return cls(
            job_id=job_id,
            state=record["state"],
            position=look.rank + 1 if look.rank is not None and is_queued else None,
            attempt=int(record["attempt"]),
            worker=record.get("owner") or None,
            model=record.get("model"),
            priority=int(record["priority"]),
            cancelling="cancel" in record,
            tokens_out=Position.parse(last_entries[0][0]).n if last_entries else 0,
            created_ms=int(record["created_ms"]),
            started_ms=int(record["started_ms"]) if "started_ms" in record else None,
            finished_ms=int(record["finished_ms"]) if "finished_ms" in record else None,
            served=look.served or not is_queued,
        )


class WorkerStatus(msgspec.Struct, frozen=True):
    """A worker's last heartbeat: when (Unix milliseconds) and what it told of itself."""

    name: str
    last_seen_ms: int
    details: dict[str, str]

    @classmethod
    def read_all(
        cls, seen: Sequence[tuple[bytes, float]], heartbeats: Sequence[dict[bytes, bytes]]
    ) -> list[WorkerStatus]:
        """From ``orcd:workers`` and the heartbeats in its order; a worker whose heartbeat has expired is left out."""
        return [
            cls(name.decode(), int(seen_ms), {key.decode(): value.decode() for key, value in heartbeat.items()})
            for (name, seen_ms), heartbeat in zip(seen, heartbeats, strict=True)
            if heartbeat
        ]


def unknown_job(job_id: str) -> InvalidRequest:
    """The error for an id that Redis holds no record of."""
    return InvalidRequest(f"job {job_id}: unknown; it was never submitted here or is no longer kept")


def check_state(job_id: str, state: bytes) -> None:
    """Raises the error of a job that a script found no state of: `InvalidRequest`, or `LogDamaged`."""
    if not state:
        raise unknown_job(job_id)
    if state == b"newer":
        raise InvalidRequest(f"job {job_id}: a newer version of orcd wrote it; upgrade this one to read it")
    if state == b"damaged":
        raise damaged(job_id)
