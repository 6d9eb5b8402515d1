"""What Redis knows of a job and of a worker right now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from orcd.errors import InvalidRequest
from orcd.events import Position

FIELDS = ("state", "owner", "model", "attempt", "priority", "cancel", "created_ms", "started_ms", "finished_ms")
"""Fields of the job record that `Status.read` wants, in this order."""


class Status(msgspec.Struct, frozen=True):
    """A job's place in its life. Times are Unix milliseconds of the Redis clock, None for what has not happened.

    ``position`` counts from 1 while the job is queued and is approximate. ``attempt`` counts claims. ``cancelling``
    says that somebody wants it cancelled. ``tokens_out`` counts the tokens in the log, over all choices.
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

    @classmethod
    def read(
        cls,
        job_id: str,
        values: Sequence[bytes | None],
        rank: int | None,
        last_entries: Sequence[tuple[bytes, Any]],
    ) -> Status:
        """From the values of `FIELDS`, the rank in ``orcd:queued`` and the last log entry, if there is one.

        Raises `InvalidRequest` if there is no such job.
        """
        if values[0] is None:
            raise unknown_job(job_id)
        record = {name: value.decode() for name, value in zip(FIELDS, values, strict=True) if value is not None}
        return cls(
            job_id=job_id,
            state=record["state"],
            position=rank + 1 if rank is not None and record["state"] == "queued" else None,
            attempt=int(record["attempt"]),
            worker=record.get("owner") or None,
            model=record.get("model"),
            priority=int(record["priority"]),
            cancelling="cancel" in record,
            tokens_out=Position.parse(last_entries[0][0]).n if last_entries else 0,
            created_ms=int(record["created_ms"]),
            started_ms=int(record["started_ms"]) if "started_ms" in record else None,
            finished_ms=int(record["finished_ms"]) if "finished_ms" in record else None,
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
