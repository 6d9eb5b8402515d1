"""The job record in Redis: claim, lease and fencing.

A job belongs to the worker that claimed it last. The claim hands out a lease; every later write names it, and is
refused once somebody else has claimed the job or Redis has forgotten the claim. The scripts in ``orcd/store/lua`` do
each of these steps atomically; docs/protocol.md says what each compares and writes.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import msgspec
import redis

from orcd.errors import InvalidRequest, LogDamaged, OrcdError
from orcd.events import Error, Event, Loading, Packing, Position, encode_event, state_after
from orcd.request import Request
from orcd.status import damaged
from orcd.store import schema
from orcd.store.claim import Claim, ClaimStatus, Lease
from orcd.store.commands.redis_script import RedisScript
from orcd.store.enqueue import Message, RecordedMessage, queue_name
from orcd.store.submission import REPUBLISH_AFTER_MS, Lifetime, Submission
from orcd.store.token_log import LoggedEvent, read_events, usable

Renewal = Literal["lost", "renewed", "cancelled"]

QUEUE_LIMIT_S = 24 * 3600
REPUBLISH_ANYWAY_MS = 600_000
"""How long a job waits in a queue that is not empty before its message is first published again."""
LIMIT_TTL_S = 7 * 24 * 3600
"""How long a limit of the queue holds on after the last worker that has it."""
MAX_TOLD = 1000
"""Queued jobs that are looked at when the progress of loading is announced."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a Celery message brought for a job: its request, if that came inside, and itself, if it must be answered.

    ``trace`` is its trace context, of `orcd.store.submission.trace_parent`.
    """

    job_id: str
    request: Request | None
    message: RecordedMessage | None
    trace: str = ""


@dataclass(slots=True)
class Append:
    """Events to write to one job's log, behind the entry at ``after`` (`Position` () for an empty log).

    ``final_state`` is set when the last of them ends the job. ``packing`` is the claim's.
    """

    job_id: str
    lease: Lease
    after: Position
    events: list[LoggedEvent] = field(default_factory=list)
    final_state: str = ""
    packing: Packing = Packing.NOTHING


class Appended(msgspec.Struct, frozen=True):
    """What became of an append, whether somebody wants the job cancelled, and how many listen.

    Unless ``appended``, nothing was written. ``fenced``: the job is not ours any more. ``conflict``: the log ends
    elsewhere (Redis forgot what we wrote): give the job back. ``damaged``: the job's keys cannot be used: end it.
    """

    status: Literal["appended", "fenced", "conflict", "damaged"]
    cancelled: bool
    num_listeners: int


class JobStore:
    """A worker's view of the jobs in Redis. Thread-safe. Every method may raise `redis.RedisError`.

    What is wrong with one job's keys never fails a call about others.
    """

    def __init__(
        self,
        connection: redis.Redis,
        *,
        owner: str,
        model: str,
        lease_ms: int,
        ttl_s: int,
        queue_limit_s: int = QUEUE_LIMIT_S,
        key_prefix: str = "",
    ) -> None:
        """``ttl_s`` and ``queue_limit_s`` are for jobs whose request comes inside a message."""
        self.redis = connection
        self.key_prefix = key_prefix
        self._owner = owner
        self._model = model
        self._lease_ms = lease_ms
        self._token_prefix = secrets.token_hex(4)
        self._lifetime = Lifetime(ttl_s, queue_limit_s)
        self._queues = (queue_name(None), queue_name(model))
        names = ("arrive", "claim", "append", "renew", "release", "reap", "answered", "cancel", "end_damaged")
        self._scripts = {name: RedisScript(connection, schema.script(name, key_prefix)) for name in names}

    def new_tokens(self, number: int) -> list[str]:
        """Owner tokens: nobody has had them before. All of one store's begin alike."""
        drawn = secrets.token_hex(8 * number)  # in one system call
        return [self._token_prefix + drawn[start : start + 16] for start in range(0, len(drawn), 16)]

    def arrive(self, arrivals: Sequence[Arrival]) -> list[OrcdError | None]:
        """Write down what came with messages, before the jobs are claimed; an error for each that is refused.

        A request whose job exists already is `Conflict` unless it is the same one.
        """
        answers: list[OrcdError | None] = []
        written: list[tuple[int, Submission | None]] = []
        arguments: list[Any] = [Submission.NUM_ARGUMENTS]
        for index, arrival in enumerate(arrivals):
            answers.append(None)
            request, message = arrival.request, arrival.message
            try:
                submission = None
                if request is not None:
                    submission = Submission.of(arrival.job_id, request, self._lifetime, trace=arrival.trace)
                text = msgspec.json.encode(message) if message else b""
            except OrcdError as error:
                answers[index] = error
                continue
            except ValueError:
                answers[index] = InvalidRequest("the message holds text that is no Unicode")
                continue
            written.append((index, submission))
            arguments += [arrival.job_id, message.task_id if message else "", text, int(submission is not None)]
            arguments += submission.arguments if submission else []
        if written:
            replies = self._scripts["arrive"]([], arguments)
            for (index, submission), reply in zip(written, replies, strict=True):
                job_id = arrivals[index].job_id
                answers[index] = submission.refusal(reply) if submission else damaged(job_id) if reply < 0 else None
        return answers

    def claim(
        self, job_ids: Sequence[str], fingerprint: str = "", tokens: Sequence[str] | None = None
    ) -> list[Claim | ClaimStatus | OrcdError]:
        """Take the jobs in one call, or say why not. One that cannot be read any more is ended with the error.

        ``fingerprint`` names the model file and the kind of device that the jobs will run on. Who calls again after a
        lost answer gives the same ``tokens``, of `new_tokens`, and gets what the first call took.
        """
        if tokens is None:
            tokens = self.new_tokens(len(job_ids))
        pairs = [word for pair in zip(job_ids, tokens, strict=True) for word in pair]
        own_queue = queue_name(self._model)
        replies = self._scripts["claim"]([], [self._owner, self._model, fingerprint, self._lease_ms, own_queue, *pairs])
        return [self._claimed(job_id, reply) for job_id, reply in zip(job_ids, replies, strict=True)]

    def _claimed(self, job_id: str, reply: list[Any]) -> Claim | ClaimStatus | OrcdError:
        status = reply[0].decode()
        if status == "damaged":
            return damaged(job_id)
        if status != "claimed":
            return status  # type: ignore[no-any-return]  # one of ClaimStatus: the script's header lists them
        _, now, fingerprint, flat, entries, messages = reply
        record = dict(zip(flat[::2], flat[1::2], strict=True))
        try:
            return Claim.read(
                job_id, int(now), fingerprint.decode(), record, entries, RecordedMessage.read_all(messages)
            )
        except (ValueError, KeyError, TypeError, LogDamaged):
            lease = Lease(int(record[b"epoch"]), record[b"token"].decode())
            error = damaged(job_id)
            with suppress(redis.RedisError):  # then whoever claims it next does
                self.end_damaged(job_id, lease, error)
            return error

    def append(self, appends: Sequence[Append]) -> list[Appended]:
        """Write the events of many jobs in one call. Calling again after a lost answer is harmless."""
        if not appends:
            return []
        arguments: list[Any] = [self._lease_ms]
        for job in appends:
            arguments += [job.job_id, job.lease.epoch, job.lease.token, job.after.text, job.final_state]
            arguments.append(len(job.events))
            for logged in job.events:
                arguments += [logged.position.text, encode_event(logged.event, job.packing)]
        answers = self._scripts["append"]([], arguments)
        return [Appended(status.decode(), cancel == 1, listeners) for status, cancel, listeners in answers]

    def renew(self, leases: Mapping[str, Lease], *, is_ready: bool = True) -> dict[str, Renewal]:
        """Renew the leases of jobs; says which are lost and which should be cancelled.

        Also notes that this worker serves its queues, and with ``is_ready`` that it takes their jobs now: call it as
        often when there are no jobs.
        """
        arguments = [self._lease_ms, int(is_ready), len(self._queues), *self._queues, *_flat(leases)]
        answers = self._scripts["renew"]([], arguments)
        names: tuple[Renewal, ...] = ("lost", "renewed", "cancelled")
        return {job_id: names[answer] for job_id, answer in zip(leases, answers, strict=True)}

    def limit_queue(self, max_queued: int, *, replaces: bool) -> None:
        """Note for all clients that no more jobs may wait than ``max_queued`` (0: any number).

        A limit that is there already is kept unless this one ``replaces`` it.
        """
        key = self.key_prefix + schema.MAX_QUEUED
        if max_queued:
            self.redis.set(key, max_queued, ex=LIMIT_TTL_S, nx=not replaces)
            self.redis.expire(key, LIMIT_TTL_S)
        elif replaces:
            self.redis.delete(key)

    def release(self, leases: Mapping[str, Lease]) -> list[Message]:
        """Give running jobs back to the queue; the caller publishes the returned messages."""
        if not leases:
            return []
        return Message.read_all(self._scripts["release"]([], [REPUBLISH_AFTER_MS, *_flat(leases)]))

    def reap(self, most: int = 100) -> list[Message]:
        """Put jobs whose lease ran out back into the queue, end those that are overdue, and find lost messages.

        The caller publishes the returned messages: of those jobs, of queued ones whose message may be lost, and of
        ended ones whose recorded messages nobody has answered.
        """
        arguments = [most, REPUBLISH_AFTER_MS, REPUBLISH_ANYWAY_MS, self._lease_ms]
        return Message.read_all(self._scripts["reap"]([], arguments))

    def answered(
        self, records: Mapping[str, RecordedMessage], about: Collection[str] = (), result_key: str = ""
    ) -> None:
        """A message was answered, of which ``records`` are kept by job: its result is stored, its links followed.

        They stay where Redis has forgotten that: where a job that it is ``about`` has not ended, or where there is no
        key ``result_key``. Another message that has come under the task id of one since stays recorded as well.
        """
        if records:
            kept = [[job_id, each.task_id, msgspec.json.encode(each)] for job_id, each in records.items()]
            self._scripts["answered"]([], [result_key, len(kept), *chain.from_iterable(kept), *about])

    def cancel(self, job_id: str, error: OrcdError) -> str:
        """End a job with ``error`` if it is queued; if it runs, have its owner cancel it.

        Returns the state after that; "" if the job is unknown, "newer" or "damaged" if its record cannot be read.
        """
        event = _event(error)
        arguments: list[Any] = [job_id, encode_event(event), state_after(event), self._lease_ms]
        state: bytes = self._scripts["cancel"]([], arguments)
        return state.decode()

    def end_damaged(self, job_id: str, lease: Lease, error: OrcdError) -> bool:
        """End a job of ours whose keys cannot be used, as far as they allow; False if it is not ours any more.

        Whoever cannot read its log finds ``error`` in the record.
        """
        arguments: list[Any] = [job_id, lease.epoch, lease.token, encode_event(_event(error)), self._lease_ms]
        return bool(self._scripts["end_damaged"]([], arguments))

    def events(self, job_id: str) -> list[Event]:
        """The job's events so far. Raises `LogDamaged` if its log cannot be used and does not tell how it ended."""
        pipeline: Any = self.redis.pipeline(transaction=False)
        pipeline.hmget(schema.job_key(job_id, self.key_prefix), "state", "end")
        pipeline.xrange(schema.log_key(job_id, self.key_prefix))
        record, entries = map(usable, pipeline.execute(raise_on_error=False))
        state, end = record or (None, None)
        return read_events(job_id, state, end, entries)

    def announce_loading(self, percent: int, remaining_ms: int | None = None) -> None:
        """Tell those who wait for the first queued jobs of this worker's queues how far the model has loaded."""
        event = encode_event(Loading(percent, remaining_ms))
        pipeline: Any = self.redis.pipeline(transaction=False)
        waiting: Any = self.redis.zrange(self.key_prefix + schema.QUEUED, 0, MAX_TOLD - 1)
        for job_id in waiting:
            pipeline.hget(schema.job_key(job_id.decode(), self.key_prefix), "queue")
        queues = pipeline.execute(raise_on_error=False)
        served = {queue.encode() for queue in self._queues}
        for job_id, queue in zip(waiting, queues, strict=True):
            if queue in served:
                pipeline.publish(schema.events_channel(job_id.decode(), self.key_prefix), event)
        pipeline.execute()


def _event(error: OrcdError) -> Error:
    return Error(error.code, error.message, error.retriable)


def _flat(leases: Mapping[str, Lease]) -> list[Any]:
    return [word for job_id, lease in leases.items() for word in (job_id, lease.epoch, lease.token)]
