"""The job record in Redis: claim, lease and fencing.

A job belongs to the worker that claimed it last. The claim hands out an epoch; every later write names it, and is
refused once somebody else has claimed the job. The scripts in ``orcd/store/lua`` do each of these steps atomically.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import redis

from orcd import request as requests
from orcd.errors import Expired, InvalidRequest, OrcdError
from orcd.events import Error, Event, Loading, Position, decode_event, encode_event
from orcd.request import Request
from orcd.store import schema
from orcd.store.enqueue import Message
from orcd.store.submission import REPUBLISH_AFTER_MS, Submission

ClaimStatus = Literal["claimed", "unknown", "busy", "finished"]


class LoggedEvent(msgspec.Struct, frozen=True):
    """An event with its place in the token log."""

    position: Position
    event: Event


@dataclass(frozen=True, slots=True)
class Claim:
    """A job as its new owner takes it over. Times are Unix milliseconds of the Redis clock.

    ``request`` is an error where the record holds none that this version can read.
    """

    job_id: str
    request: Request | InvalidRequest
    epoch: int
    attempt: int
    created_ms: int
    started_ms: int
    first_token_ms: int | None
    claimed_ms: int
    deadline_ms: int
    cancelled: bool
    log: tuple[LoggedEvent, ...]


@dataclass(slots=True)
class Append:
    """Events to write to one job's log; ``final_state`` is set when the last of them ends the job."""

    job_id: str
    epoch: int
    events: list[LoggedEvent] = field(default_factory=list)
    final_state: str = ""


class Appended(msgspec.Struct, frozen=True):
    """What an append found: whether the job is still ours, whether it should be cancelled, who listens."""

    owned: bool
    cancelled: bool
    num_listeners: int


class JobStore:
    """A worker's view of the jobs in Redis. Thread-safe. Every method may raise `redis.RedisError`."""

    def __init__(self, connection: redis.Redis, *, owner: str, model: str, lease_ms: int, ttl_s: int) -> None:
        self.redis = connection
        self._owner = owner
        self._model = model
        self._lease_ms = lease_ms
        self._ttl_s = ttl_s
        names = ("submit", "claim", "append", "renew", "release", "reap")
        self._scripts = {name: connection.register_script(schema.script(name)) for name in names}

    def submit(self, job_id: str, request: Request) -> bool:
        """Write the record of a request that came inside a message; False if the job exists already."""
        submission = Submission.of(job_id, request, self._ttl_s)
        created: list[int] = self._scripts["submit"](submission.keys, submission.arguments)
        return bool(created[0])

    def claim(self, job_ids: Sequence[str]) -> list[Claim | ClaimStatus | OrcdError]:
        """Take the jobs in one call, or say why not. One that cannot be read any more is ended with the error."""
        keys = [schema.QUEUED, schema.RUNNING]
        for job_id in job_ids:
            keys += [schema.job_key(job_id), schema.log_key(job_id)]
        replies = self._scripts["claim"](keys, [self._owner, self._model, self._lease_ms, self._ttl_s, *job_ids])
        return [self._claimed(job_id, reply) for job_id, reply in zip(job_ids, replies, strict=True)]

    def _claimed(self, job_id: str, reply: list[Any]) -> Claim | ClaimStatus | OrcdError:
        status: ClaimStatus = reply[0].decode()
        if status != "claimed":
            return status
        _, now, flat, entries = reply
        record = dict(zip(flat[::2], flat[1::2], strict=True))
        try:
            return self._read_claim(job_id, int(now), record, entries)
        except (ValueError, KeyError, msgspec.MsgspecError) as error:
            damage = OrcdError(f"the record of job {job_id} cannot be read ({type(error).__name__}); submit it again")
            last = Position.parse(entries[-1][0]) if entries else Position()
            event = Error(damage.code, damage.message, damage.retriable)
            failure = Append(job_id, int(record[b"epoch"]), [LoggedEvent(last.after(0), event)], "failed")
            with suppress(redis.RedisError):  # then whoever claims it next does
                self.append([failure])
            return damage

    def _read_claim(self, job_id: str, now: int, record: dict[bytes, bytes], entries: list[Any]) -> Claim:
        return Claim(
            job_id=job_id,
            request=_stored(record[b"request"]),
            epoch=int(record[b"epoch"]),
            attempt=int(record[b"attempt"]),
            created_ms=int(record[b"created_ms"]),
            started_ms=int(record[b"started_ms"]),
            first_token_ms=int(first) if (first := record.get(b"first_token_ms")) else None,
            claimed_ms=now,
            deadline_ms=int(record[b"deadline_ms"]),
            cancelled=b"cancel" in record,
            log=tuple(LoggedEvent(Position.parse(entry), decode_event(fields[1])) for entry, fields in entries),
        )

    def append(self, appends: Sequence[Append]) -> list[Appended]:
        """Write the events of many jobs in one call. Calling again after a lost answer is harmless."""
        if not appends:
            return []
        keys = [schema.RUNNING]
        arguments: list[Any] = [self._ttl_s]
        for job in appends:
            keys += [schema.job_key(job.job_id), schema.log_key(job.job_id)]
            arguments += [job.job_id, job.epoch, job.final_state, len(job.events)]
            for logged in job.events:
                arguments += [logged.position.n, logged.position.k, encode_event(logged.event)]
        answers = self._scripts["append"](keys, arguments)
        return [Appended(status == 1, cancel == 1, listeners) for status, cancel, listeners in answers]

    def renew(self, epochs: dict[str, int]) -> dict[str, Literal["lost", "renewed", "cancelled"]]:
        """Renew the leases of jobs, given with their epochs; says which are lost and which should be cancelled."""
        if not epochs:
            return {}
        answers = self._scripts["renew"](
            [schema.RUNNING, *map(schema.job_key, epochs)],
            [self._lease_ms, self._ttl_s, *(item for pair in epochs.items() for item in pair)],
        )
        names: tuple[Literal["lost", "renewed", "cancelled"], ...] = ("lost", "renewed", "cancelled")
        return {job_id: names[answer] for job_id, answer in zip(epochs, answers, strict=True)}

    def release(self, epochs: dict[str, int]) -> list[Message]:
        """Give running jobs back to the queue; the caller publishes the returned messages."""
        if not epochs:
            return []
        answers = self._scripts["release"](
            [schema.RUNNING, schema.QUEUED, *map(schema.job_key, epochs)],
            [REPUBLISH_AFTER_MS, self._ttl_s, *(item for pair in epochs.items() for item in pair)],
        )
        return [
            Message(job_id, answer[0].decode(), int(answer[1]))
            for job_id, answer in zip(epochs, answers, strict=True)
            if answer
        ]

    def reap(self, most: int = 100) -> list[Message]:
        """Put jobs whose lease ran out back into the queue and find queued ones whose message may be lost.

        Ends queued jobs whose deadline has passed.
        """
        expired = Expired("the deadline passed while the job was queued")
        event = encode_event(Error(expired.code, expired.message, expired.retriable))
        found = self._scripts["reap"]([schema.RUNNING, schema.QUEUED], [most, REPUBLISH_AFTER_MS, self._ttl_s, event])
        return [Message(job.decode(), queue.decode(), int(priority), lost == 1) for job, queue, priority, lost in found]

    def events(self, job_id: str) -> list[Event]:
        """The job's token log."""
        entries: Any = self.redis.xrange(schema.log_key(job_id))
        return [decode_event(fields[b"e"]) for _, fields in entries]

    def announce_loading(self, percent: int, remaining_ms: int | None = None) -> None:
        """Tell those who wait for the first queued jobs how far the model has loaded."""
        event = encode_event(Loading(percent, remaining_ms))
        pipeline = self.redis.pipeline(transaction=False)
        waiting: Any = self.redis.zrange(schema.QUEUED, 0, 99)
        for job_id in waiting:
            pipeline.publish(schema.events_channel(job_id.decode()), event)
        pipeline.execute()


def _stored(json: bytes) -> Request | InvalidRequest:
    try:
        return requests.decode(json)
    except InvalidRequest as error:
        return error
