"""What a worker does for its jobs by the clock: leases, cancellations, deadlines, lost listeners, lost jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import redis

from orcd.errors import Cancelled, Expired, InferenceTimeout, OrcdError
from orcd.store import schema
from orcd.store.enqueue import Message
from orcd.store.job_store import JobStore
from tasks.dispatch.active_job import ActiveJob
from worker.settings import Settings

REAP_EVERY_S = 1.0
HEARTBEAT_EVERY_S = 5.0
HEARTBEAT_TTL_S = 60
DISCONNECT_AFTER_S = 10.0


@dataclass(frozen=True, slots=True)
class Termination:
    """What the clock or Redis says of a job: end it with ``error``, or drop it because it is somebody else's now."""

    job_id: str
    error: OrcdError | None


class Maintenance:
    """Periodic work of one worker. Belongs to the job runner's thread; `run` is called a few times a second."""

    def __init__(self, store: JobStore, settings: Settings, worker_id: str, publish: Callable[[Message], None]) -> None:
        self._store = store
        self._settings = settings
        self._worker_id = worker_id
        self._publish = publish
        self._due: dict[str, float] = {}
        self._control: Any = None

    def run(self, jobs: Collection[ActiveJob], gauges: dict[str, Any]) -> list[Termination]:
        """Do what is due. ``gauges`` go into the heartbeat. Raises `redis.RedisError` when Redis is away."""
        terminations = list(self._overdue(jobs))
        known = {job.job_id for job in jobs}
        terminations += [Termination(job_id, Cancelled("cancelled")) for job_id in self._cancelled() if job_id in known]
        if self._is_due("renew", self._settings.lease_ms / 3000):
            answers = self._store.renew({job.job_id: job.claim.epoch for job in jobs})
            errors = {"lost": None, "cancelled": Cancelled("cancelled")}
            terminations += [
                Termination(job_id, errors[answer]) for job_id, answer in answers.items() if answer in errors
            ]
        if self._is_due("reap", REAP_EVERY_S):
            for message in self._store.reap():
                self._publish(message)
        if self._is_due("heartbeat", HEARTBEAT_EVERY_S):
            self._beat(gauges)
        return terminations

    def close(self) -> None:
        """Stop listening; take the worker off the list."""
        try:
            if self._control is not None:
                self._control.close()
            self._store.redis.zrem(schema.WORKERS, self._worker_id)
            self._store.redis.delete(schema.worker_key(self._worker_id))
        except redis.RedisError:
            return  # the heartbeat runs out by itself

    def _is_due(self, chore: str, every_s: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(chore, 0.0):
            return False
        self._due[chore] = now + every_s
        return True

    def _overdue(self, jobs: Collection[ActiveJob]) -> Iterator[Termination]:
        limit_s = self._settings.job_time_limit_s
        for job in jobs:
            now_ms = job.now_ms()
            if job.claim.deadline_ms and now_ms > job.claim.deadline_ms:
                yield Termination(job.job_id, Expired("the deadline passed before the job was finished"))
            elif limit_s and now_ms - job.claim.started_ms > limit_s * 1000:
                yield Termination(job.job_id, InferenceTimeout(f"the job ran longer than {limit_s} s"))
            elif job.cancel_on_disconnect and time.monotonic() - job.last_listened > DISCONNECT_AFTER_S:
                yield Termination(job.job_id, Cancelled("nobody listened any more"))

    def _cancelled(self) -> Iterator[str]:
        if self._control is None:
            connection: Any = self._store.redis  # redis-py does not type pubsub()
            control = connection.pubsub(ignore_subscribe_messages=True)
            control.subscribe(schema.CONTROL)
            self._control = control  # kept only once it listens
        while (message := self._control.get_message(timeout=0)) is not None:
            yield msgspec.json.decode(message["data"])["cancel"]

    def _beat(self, gauges: dict[str, Any]) -> None:
        now_ms = time.time_ns() // 1_000_000
        pipeline: Any = self._store.redis.pipeline(transaction=False)
        pipeline.zremrangebyscore(schema.WORKERS, "-inf", now_ms - HEARTBEAT_TTL_S * 1000)
        pipeline.zadd(schema.WORKERS, {self._worker_id: now_ms})
        pipeline.expire(schema.WORKERS, HEARTBEAT_TTL_S)
        pipeline.hset(schema.worker_key(self._worker_id), mapping=gauges)
        pipeline.expire(schema.worker_key(self._worker_id), HEARTBEAT_TTL_S)
        pipeline.execute()
