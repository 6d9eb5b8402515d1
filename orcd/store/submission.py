"""From a caller's fields to what the submit script writes and the message that follows."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

import msgspec

from orcd import request as requests
from orcd.errors import Conflict, InvalidRequest, ModelNotServed, OrcdError, QueueFull
from orcd.events import Packing
from orcd.request import Request, RequestFields
from orcd.status import damaged
from orcd.store.enqueue import Message, Publisher, queue_name, tenant_digest

BATCH = 256
"""Records written in one pipeline."""
REPUBLISH_AFTER_MS = 15_000
"""How long a queued job waits for a claim before its message is first published again."""
MAX_KEY_CHARACTERS = 256
_TRACE_PARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_WELL_FORMED = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class SubmissionFields(RequestFields, total=False):
    """The fields of a request as keyword arguments, and the name that its sender may give to it.

    Whoever submits the same request again with the same ``idempotency_key`` gets the same job, for as long as that is
    kept. The key with another request is refused (`Conflict`). ``traceparent`` names, as W3C's Trace Context does, the
    span that the job's spans belong to.
    """

    idempotency_key: str | None
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long, in seconds, a job's keys are kept after its end, and how long it may wait in the queue."""

    ttl_s: int
    queue_limit_s: int


@dataclass(frozen=True, slots=True)
class Submission:
    """A checked job, ready to be written: the submit script's arguments, and the message that follows."""

    NUM_ARGUMENTS: ClassVar = 13

    arguments: list[Any]
    message: Message

    @classmethod
    def prepare(
        cls, fields: Mapping[str, Any] | Request, job_id: str | None, lifetime: Lifetime, *, fail_fast: bool = False
    ) -> Submission:
        """Check a request, if it is not one already, and give it an id if it has none. Raises `InvalidRequest`."""
        trace = ""
        if isinstance(fields, Mapping) and "traceparent" in fields:
            fields = dict(fields)
            given = fields.pop("traceparent")
            trace = trace_parent(given)
            if given is not None and not trace:
                raise InvalidRequest("traceparent: must look like 00-TRACE-SPAN-FLAGS in hexadecimal digits")
        request, job_id = read_fields(fields, job_id)
        job_id = uuid.uuid4().hex if job_id is None else job_id
        return cls.of(job_id, request, lifetime, fail_fast=fail_fast, trace=trace, packing=Packing.TOKENS)

    @classmethod
    def of(
        cls,
        job_id: str,
        request: Request,
        lifetime: Lifetime,
        *,
        fail_fast: bool = False,
        trace: str = "",
        packing: Packing = Packing.NOTHING,
    ) -> Submission:
        """A request that has been checked. Raises `InvalidRequest` for an id, text or priority that cannot be stored.

        With ``fail_fast`` it is refused if no worker serves its model. ``trace`` is of `trace_parent`. ``packing`` is
        what its sender reads in the job's log, which those of older versions do not.
        """
        if type(request.priority) is not int:  # of a request made by hand; nobody reads a list orcd:5.0
            raise InvalidRequest(f"priority: expected `int`, got `{type(request.priority).__name__}`")
        queue = queue_name(request.model)
        tenant = tenant_digest(request.tenant)
        deadline_ms = 0 if request.deadline_s is None else max(1, round(request.deadline_s * 1000))
        return cls(
            arguments=[
                check_job_id(job_id),
                requests.encode(request.with_seed(job_id)),
                _digest(request),
                queue,
                request.priority,
                deadline_ms,
                lifetime.ttl_s,
                lifetime.queue_limit_s,
                REPUBLISH_AFTER_MS,
                int(fail_fast),
                tenant,
                trace,
                int(packing),
            ],
            message=Message(job_id, queue, request.priority, tenant=tenant),
        )

    def refusal(self, answer: int) -> OrcdError | None:
        """What the submit script's answer says is wrong, if anything is."""
        match answer:
            case -1:
                what = "the id belongs to another request; choose another id or idempotency_key"
                return Conflict(f"job {self.message.job_id}: {what}")
            case -3:
                return QueueFull(f"too many jobs wait; submit again in {QueueFull.retry_after_s:g} s")
            case -4:
                return ModelNotServed("no worker serves the model now; start one, or submit without fail_fast")
        return damaged(self.message.job_id) if answer < 0 else None


def read_fields(fields: Any, job_id: str | None) -> tuple[Request, str | None]:
    """The request in `SubmissionFields`, and the job's id: ``job_id``, or else what its key gives, if it has one.

    Raises `InvalidRequest`, also where both are given.
    """
    if isinstance(fields, Request):
        return fields, job_id
    of_request = dict(fields) if isinstance(fields, Mapping) else fields
    key = of_request.pop("idempotency_key", None) if isinstance(of_request, dict) else None
    if key is not None and job_id is not None:
        raise InvalidRequest("idempotency_key: it gives the job its id; leave it or the job_id out")
    return requests.parse(of_request), job_id if key is None else _job_id_of_key(key)


def trace_parent(text: Any) -> str:
    """A ``traceparent`` of W3C's Trace Context, as senders and headers give it; empty if it is none."""
    return text if isinstance(text, str) and _TRACE_PARENT.fullmatch(text) else ""


def prepare_many(
    fields_of_all: Sequence[Mapping[str, Any] | Request],
    job_ids: Sequence[str] | None,
    lifetime: Lifetime,
    *,
    fail_fast: bool = False,
) -> list[list[Submission]]:
    """Check many requests before any is written, in batches. Raises `InvalidRequest` naming the index, from 0."""
    if job_ids is not None and len(job_ids) != len(fields_of_all):
        raise InvalidRequest(f"job_ids: {len(job_ids)} ids for {len(fields_of_all)} requests")
    if job_ids is not None and len(set(job_ids)) != len(job_ids):
        raise InvalidRequest("job_ids: an id is given twice")
    submissions = []
    for index, fields in enumerate(fields_of_all):
        try:
            job_id = job_ids[index] if job_ids else None
            submissions.append(Submission.prepare(fields, job_id, lifetime, fail_fast=fail_fast))
        except InvalidRequest as error:
            raise InvalidRequest(f"request {index}: {error.message}") from None
    return [submissions[start : start + BATCH] for start in range(0, len(submissions), BATCH)]


def submit_arguments(batch: Sequence[Submission], publisher: Publisher) -> Iterator[list[Any]]:
    """What the submit script takes, for each."""
    return ([*submission.arguments, publisher.text(submission.message)] for submission in batch)


def messages_left(batch: Sequence[Submission], answers: Sequence[int]) -> list[Message]:
    """The messages of the jobs that the submit script created and did not send, by its answer for each."""
    return [job.message for job, created in zip(batch, answers, strict=True) if created == 1]


def add_stored(stored: list[str], batch: Sequence[Submission], answers: Sequence[int]) -> None:
    """Add the ids of the jobs that are stored, by the submit script's answer for each of a batch.

    Raises `QueueFull` with all that are stored if a job was refused for that, as it may be submitted again; otherwise
    the first refusal, if there is one: `Conflict`, `LogDamaged` or `ModelNotServed`.
    """
    stored += [job.message.job_id for job, answer in zip(batch, answers, strict=True) if answer >= 0]
    refusals = [refusal for job, answer in zip(batch, answers, strict=True) if (refusal := job.refusal(answer))]
    for refusal in refusals:
        if isinstance(refusal, QueueFull):
            several = f"{len(stored)} of the jobs were stored, the others not: " if stored else ""
            raise QueueFull(several + refusal.message, stored)
    if refusals:
        raise refusals[0]


def _job_id_of_key(key: Any) -> str:
    """A hash, as everybody may see a job's id, and the key is the caller's own. Raises `InvalidRequest`."""
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        raise InvalidRequest(f"idempotency_key: must be a text of 1 to {MAX_KEY_CHARACTERS} characters")
    try:
        return "key-" + hashlib.sha256(b"orcd:idempotency_key:" + key.encode()).hexdigest()[:32]
    except UnicodeEncodeError:
        raise InvalidRequest("idempotency_key: holds a lone surrogate, which is not valid Unicode text") from None


def _digest(request: Request) -> str:
    """Tells requests apart. Taken before a seed is drawn, so the same fields have the same digest each time."""
    plain = msgspec.to_builtins(request, str_keys=True)
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()[:32]


def is_well_formed(job_id: object) -> TypeGuard[str]:
    """Whether it is 1 to 128 of ``A-Z a-z 0-9 _ . : -``: then it may be shown to everybody who operates workers."""
    return isinstance(job_id, str) and _WELL_FORMED.fullmatch(job_id) is not None


def check_job_id(job_id: str) -> str:
    """The id itself. Raises `InvalidRequest` unless it is well formed."""
    if not is_well_formed(job_id):
        raise InvalidRequest("job_id: must be 1 to 128 of the characters A-Z a-z 0-9 _ . : -")
    return job_id
