"""From a caller's fields to a stored and announced job."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from tasks import request, schema
from tasks.app import publish
from tasks.job import Message, submission
from worker.errors import InvalidRequest

log = logging.getLogger(__name__)

BATCH = 256
"""Records written in one pipeline."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A checked job, ready to be written: the submit script's keys and arguments, and the message that follows."""

    keys: list[str]
    arguments: list[Any]
    message: Message

    @classmethod
    def prepare(cls, fields: Mapping[str, Any], job_id: str | None, ttl_s: int) -> Submission:
        """Check a request and give it an id and a seed if it has none. Raises `InvalidRequest`."""
        checked = request.parse(dict(fields) if isinstance(fields, Mapping) else fields).with_seed()
        job_id = uuid.uuid4().hex if job_id is None else job_id
        keys, arguments = submission(job_id, checked, ttl_s)
        return cls(keys, arguments, Message(job_id, schema.queue_name(checked.model), checked.priority))


def prepare_many(
    requests: Sequence[Mapping[str, Any]], job_ids: Sequence[str] | None, ttl_s: int
) -> list[list[Submission]]:
    """Check many requests before any is written, in batches. Raises `InvalidRequest` naming the index, from 0."""
    if job_ids is not None and len(job_ids) != len(requests):
        raise InvalidRequest(f"job_ids: {len(job_ids)} ids for {len(requests)} requests")
    if job_ids is not None and len(set(job_ids)) != len(job_ids):
        raise InvalidRequest("job_ids: an id is given twice")
    submissions = []
    for index, fields in enumerate(requests):
        try:
            submissions.append(Submission.prepare(fields, job_ids[index] if job_ids else None, ttl_s))
        except InvalidRequest as error:
            raise InvalidRequest(f"request {index}: {error.message}") from None
    return [submissions[start : start + BATCH] for start in range(0, len(submissions), BATCH)]


def announce(app: Celery, batch: Sequence[Submission], answers: Sequence[Sequence[int]]) -> None:
    """Send the messages of the jobs that the submit script created.

    A stored job is safe: where a message cannot be sent, this logs a warning and leaves the job to a worker's reaper.
    """
    messages = [job.message for job, (created, _) in zip(batch, answers, strict=True) if created]
    for num_sent, message in enumerate(messages):
        try:
            publish(app, message)
        except OperationalError:
            num_left = len(messages) - num_sent
            log.warning("%d jobs are stored but were not announced; a worker will find them in a while", num_left)
            return
