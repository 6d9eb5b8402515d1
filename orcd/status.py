"""What Redis knows of a job, of a worker and of a queue right now."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
import redis

from orcd.errors import InvalidRequest
from orcd.events import Error, Position, decode_event
from orcd.store.token_log import damaged

FIELDS = ("state", "owner", "model", "attempt", "losses", "priority", "cancel", "created_ms", "started_ms",
          "finished_ms")  # fmt: skip
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

    ``position`` counts from 1 while the job is queued and is approximate. ``attempt`` counts claims that were not given
    back in order, ``losses`` the owners that died with the job since its last token. ``worker`` runs the job, or ran it
    to its end. ``cancelling`` says that somebody wants it cancelled. ``tokens_out`` counts the tokens in the log, over
    all choices. ``served`` is false for a queued job while no worker serves the model that it asks for. ``error`` is
    what an ended job failed with, ``reason`` why a queued one waits.
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
    losses: int = 0
    error: Error | None = None
    reason: str = ""

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
            losses=int(record.get("losses", 0)),
            reason=look.reason if is_queued else "",
            error=_error_in(look.end or (last_entries[0][1].get(b"e", b"") if last_entries else b"")),
        )


class WorkerStatus(msgspec.Struct, frozen=True):
    """A worker, as it told of itself with its last heartbeat, ``silent_ms`` before it was asked for.

    ``state`` is ``loading`` (also while a lost engine is started again), ``ready``, ``draining`` (it takes no more
    jobs and will leave) or ``unhealthy`` (it takes no more jobs). ``jobs`` counts those it has claimed; in its engine
    ``running`` of their answers are generated and ``waiting`` wait for their turn. ``output_tokens`` counts those
    since the engine's start, ``tokens_per_s`` those of the last seconds. ``jobs_per_s`` is how many jobs it ended in
    a second, over about the last minute in which it had any; 0 while none has ended. ``kv_use`` is the share of its
    KV blocks in use, from 0 to 1, and ``load_percent`` how far the model is loaded. ``last_seen_ms`` is the Unix time
    in milliseconds by the Redis clock. What an older worker does not tell is empty or 0.
    """

    name: str
    last_seen_ms: int
    silent_ms: int
    state: str = ""
    model: str = ""
    device: str = ""
    jobs: int = 0
    running: int = 0
    waiting: int = 0
    output_tokens: int = 0
    tokens_per_s: float = 0.0
    jobs_per_s: float = 0.0
    kv_use: float = 0.0
    load_percent: int = 0
    uptime_s: int = 0
    version: str = ""
    host: str = ""
    pid: int = 0

    @classmethod
    def read_all(cls, answer: Sequence[Any]) -> list[WorkerStatus]:
        """From what the workers script answers, by name. A worker whose heartbeat cannot be read is left out."""
        now_ms, *workers = answer
        found = []
        for name, seen_ms, fields in workers:
            words = [word.decode(errors="replace") for word in (name, *fields)]
            told: dict[str, Any] = dict(zip(words[1::2], words[2::2], strict=True))
            last_seen_ms = round(float(seen_ms))
            told |= {"name": words[0], "last_seen_ms": last_seen_ms, "silent_ms": max(0, now_ms - last_seen_ms)}
            with suppress(msgspec.ValidationError):
                found.append(msgspec.convert(told, cls, strict=False))
        return sorted(found, key=lambda worker: worker.name)


class QueueStatus(msgspec.Struct, frozen=True):
    """A queue: that of a ``model``, or with None that of the jobs which any model may run.

    ``workers`` counts those that take its jobs, now or once their model is loaded; with none, its jobs wait for one.
    ``running`` jobs were claimed, ``waiting`` ones were not, by priority in ``priorities``; the oldest has waited for
    ``oldest_ms``. ``messages`` are those in Celery's lists; a request that comes inside of one counts as a job once a
    worker has taken it.
    """

    queue: str
    model: str | None
    workers: int
    running: int
    waiting: int
    oldest_ms: int | None
    priorities: dict[int, int]
    messages: int


def _error_in(event: bytes) -> Error | None:
    """The error that an event is, if it is one."""
    with suppress(ValueError):
        found = decode_event(event)
        return found if isinstance(found, Error) else None
    return None


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
