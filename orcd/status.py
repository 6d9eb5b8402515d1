"""What Redis knows of a job, of a worker and of a queue right now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import msgspec
import redis

from orcd.errors import InvalidRequest, LogDamaged
from orcd.events import End, Error, Position, decode_event
from orcd.sampling import prepared

FIELDS = ("state", "owner", "model", "attempt", "losses", "priority", "cancel", "created_ms", "started_ms",
          "first_token_ms", "finished_ms", "queue")  # fmt: skip
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
        return cls(state.decode(), None if rank < 0 else rank, served == 1, end, reason.decode(errors="replace"))


class Status(msgspec.Struct, frozen=True):
    """A job's place in its life. Times are Unix milliseconds of the Redis clock, None for what has not happened.

    ``position`` counts from 1 while the job is queued and is approximate. ``attempt`` counts claims that were not
    given back in order, ``losses`` the owners that died with the job since its last token. ``worker`` runs the job,
    or ran it to its end. ``cancelling`` says that somebody wants it cancelled. ``tokens_out`` counts the tokens in
    the log, over all choices, and ``tokens_per_s`` those after the first in a second, up to ``as_of_ms`` while the
    job runs; None while there are none. ``served`` is false for a queued job while no worker serves the model that it
    asks for, which is ``asked_model``, None for any. ``error`` is what an ended job failed with, ``end`` what one
    came to that succeeded, and ``reason`` why a queued one waits.
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
    asked_model: str | None = None
    first_token_ms: int | None = None
    tokens_per_s: float | None = None
    end: End | None = None
    as_of_ms: int = 0

    @classmethod
    def read(
        cls,
        job_id: str,
        look: Look,
        values: Sequence[bytes | None] | None,
        last_entries: Sequence[tuple[bytes, Any]] | None,
        now_ms: int = 0,
    ) -> Status:
        """From a look at the job, the values of `FIELDS` after it, the last log entry, if there is one, and the time.

        Raises `InvalidRequest` if there is no such job, `LogDamaged` if its record cannot be read. A log that cannot be
        used (None) counts as empty.
        """
        if values is None:
            raise damaged(job_id)
        found = {name: value for name, value in zip(FIELDS, values, strict=True) if value is not None}
        if "state" not in found:
            raise unknown_job(job_id)
        try:
            record = {name: value.decode() for name, value in found.items()}
            return cls._read(job_id, look, record, last_entries, now_ms)
        except (KeyError, ValueError):
            raise damaged(job_id) from None

    @classmethod
    def _read(
        cls,
        job_id: str,
        look: Look,
        record: dict[str, str],
        last_entries: Sequence[tuple[bytes, Any]] | None,
        now_ms: int,
    ) -> Status:
        is_queued = record["state"] == "queued"
        last = _terminal(look.end or (last_entries[0][1].get(b"e", b"") if last_entries else b""))
        tokens_out = Position.parse(last_entries[0][0]).n if last_entries else 0
        first_token_ms, finished_ms = _time(record, "first_token_ms"), _time(record, "finished_ms")
        return cls(
            job_id=job_id,
            state=record["state"],
            position=look.rank + 1 if look.rank is not None and is_queued else None,
            attempt=int(record["attempt"]),
            worker=record.get("owner") or None,
            model=record.get("model"),
            priority=int(record["priority"]),
            cancelling="cancel" in record,
            tokens_out=tokens_out,
            created_ms=int(record["created_ms"]),
            started_ms=_time(record, "started_ms"),
            finished_ms=finished_ms,
            served=look.served or not is_queued,
            losses=int(record.get("losses", 0)),
            reason=look.reason if is_queued else "",
            error=last if isinstance(last, Error) else None,
            asked_model=model_of(record.get("queue", "")),
            first_token_ms=first_token_ms,
            tokens_per_s=None if is_queued else _rate(tokens_out, first_token_ms, finished_ms or now_ms),
            end=last if isinstance(last, End) else None,
            as_of_ms=now_ms,
        )


@prepared
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
    worker has taken it. ``drain_ms`` is how long it takes until none waits if no more come, at the rate at which these
    workers have ended jobs of late; None where that is unknown.
    """

    queue: str
    model: str | None
    workers: int
    running: int
    waiting: int
    oldest_ms: int | None
    priorities: dict[int, int]
    messages: int
    drain_ms: int | None = None


class JobSummary(msgspec.Struct, frozen=True):
    """A job in a list. Times are Unix milliseconds of the Redis clock, None for what has not happened.

    ``model`` is the one that runs or ran it, else the one that it asks for, None for any. ``outcome`` is the code of an
    ended job's error, or the finish reason of one that succeeded. ``as_of_ms`` is when Redis was asked.
    """

    job_id: str
    state: str
    model: str | None
    worker: str | None
    priority: int
    attempt: int
    created_ms: int
    started_ms: int | None
    finished_ms: int | None
    outcome: str
    as_of_ms: int = 0


class WaitEstimate(msgspec.Struct, frozen=True):
    """What a job waits for. ``ahead`` jobs of its queue, or for any model, are more urgent, or as urgent and older.

    At the rate of ``jobs_per_s``, at which the workers that take such jobs have ended them of late, it starts in about
    ``starts_in_ms``; None where that is unknown: none was ended yet, or no worker is ready. ``served`` says whether one
    takes such jobs, now or soon; ``models`` are those that there are workers for, and ``load_percent`` is how far the
    model is loaded where the job waits for that.
    """

    job_id: str
    state: str
    ahead: int
    starts_in_ms: int | None
    jobs_per_s: float
    reason: str
    served: bool
    models: list[str]
    load_percent: int | None


def model_of(queue: str) -> str | None:
    """The model whose jobs are in a queue of this name; None if it is the one for any model."""
    return unquote(queue.removeprefix("orcd.")) if queue.startswith("orcd.") else None


def _time(record: Mapping[str, str], name: str) -> int | None:
    return int(record[name]) if name in record else None


def _rate(num_tokens: int, first_ms: int | None, last_ms: int) -> float | None:
    """Tokens a second after the first one."""
    if first_ms is None or num_tokens < 2 or last_ms <= first_ms:
        return None
    return round(1000 * (num_tokens - 1) / (last_ms - first_ms), 1)


def _terminal(event: bytes) -> End | Error | None:
    """The terminal event, if it is one."""
    with suppress(ValueError):
        found = decode_event(event)
        return found if isinstance(found, End | Error) else None
    return None


def unknown_job(job_id: str) -> InvalidRequest:
    """The error for an id that Redis holds no record of."""
    return InvalidRequest(f"job {job_id}: unknown; it was never submitted here or is no longer kept")


def damaged(job_id: str) -> LogDamaged:
    """The error for a job whose log cannot be used."""
    return LogDamaged(f"job {job_id}: its token log is damaged or gone; submit it again under another id")


def check_state(job_id: str, state: bytes) -> None:
    """Raises the error of a job that a script found no state of: `InvalidRequest`, or `LogDamaged`."""
    if not state:
        raise unknown_job(job_id)
    if state == b"newer":
        raise InvalidRequest(f"job {job_id}: a newer version of orcd wrote it; upgrade this one to read it")
    if state == b"damaged":
        raise damaged(job_id)
