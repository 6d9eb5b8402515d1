"""What a worker does for its jobs by the clock: limits, lost listeners, lost jobs, its heartbeat."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from os import getpid
from socket import gethostname
from typing import Any

import redis

from orcd.errors import Cancelled, Expired, InferenceTimeout, OrcdError
from orcd.monitoring.queue_watch import QueueWatch
from orcd.monitoring.worker_registry import WorkerRegistry
from orcd.request import Request
from orcd.store import schema
from orcd.store.backoff import FIRST_RETRY_S, MAX_RETRY_S, Backoff
from orcd.store.enqueue import Message, publish_all
from orcd.store.job_store import JobStore
from tasks.dispatch.active_job import ActiveJob, Termination
from tasks.dispatch.job_runner import JobRunner
from tasks.observe.observer import Observer
from tasks.supervised_thread import OnDeath, SupervisedThread
from worker import contract
from worker.settings import Settings

TICK_S = 0.1
REAP_EVERY_S = 1.0
LISTENERS_EVERY_S = 1.0
HEARTBEAT_EVERY_S = 2.0
QUEUES_EVERY_S = 2.0
DISCONNECT_AFTER_S = 10.0


@dataclass(slots=True)
class _PeriodicCall:
    """Something that is done every so often; where it failed, again after a moment, and ever later."""

    name: str
    call: Callable[[], None]
    every_s: float
    due: float = 0.0
    backoff: Backoff = field(default_factory=lambda: Backoff(FIRST_RETRY_S, MAX_RETRY_S))

    def run_if_due(self, failed: Callable[[str, Exception], None]) -> None:
        if time.monotonic() < self.due:
            return
        try:
            self.call()
        except Exception as error:  # Redis or the broker is away, or a bug of ours that must not stop the other calls
            failed(self.name, error)
            self.due = time.monotonic() + self.backoff.failed(error)
        else:
            self.backoff.succeeded()
            self.due = time.monotonic() + self.every_s


class Maintenance:
    """A thread with the periodic work of one worker. What it finds of a job it tells the job runner."""

    def __init__(
        self,
        store: JobStore,
        settings: Settings,
        observer: Observer,
        publish: Callable[[Message], None],
        runner: JobRunner,
        on_death: OnDeath,
    ) -> None:
        self._store = store
        self._registry = WorkerRegistry(store.redis, store.key_prefix)
        self._settings = settings
        self._observer = observer
        self._publish = publish
        self._runner = runner
        self._thread = SupervisedThread("maintenance", self._run, on_death)
        self._started_at = time.monotonic()
        self._identity: dict[str, int | float | str] = {
            "device": settings.device,
            "version": version("orcd"),
            "host": gethostname(),
            "pid": getpid(),
        }
        self._gauges: dict[str, int | float | str] = {}
        self._told_state: object = None
        self._heartbeat = _PeriodicCall("heartbeat", self._beat, HEARTBEAT_EVERY_S)
        self._queue_watch = QueueWatch(store.redis, observer.worker_id, store.key_prefix)
        self._watching = _PeriodicCall("queues", self._watch_queues, QUEUES_EVERY_S)
        self._announced: contract.Load | None = None
        self._unpublished: dict[str, Message] = {}
        self._overdue: set[str] = set()
        self._last_token: dict[str, tuple[int, float]] = {}
        self._absent_s: dict[str, float] = {}
        self._listened_at = 0.0
        self._has_limited_queue = False
        self._calls = (
            _PeriodicCall("deadlines", self._end_overdue, TICK_S),
            _PeriodicCall("stalls", self._end_stalled, TICK_S),
            _PeriodicCall("loading", self._announce_loading, 0.0),
            _PeriodicCall("reap", self._reap, REAP_EVERY_S),
            _PeriodicCall("listeners", self._look_for_listeners, LISTENERS_EVERY_S),
            self._heartbeat,
            *([self._watching] if settings.metrics_port else []),
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End it, which takes the worker off the list. It is left where Redis does not answer in time."""
        self._thread.stop()
        self._observer.load_changed.set()
        self._thread.join(timeout_s)

    def _leave(self) -> None:
        try:
            self._registry.remove(self._observer.worker_id)
        except redis.RedisError:
            return  # the heartbeat runs out by itself

    def _run(self) -> None:
        load_changed = self._observer.load_changed
        while not self._thread.stopping.is_set():
            self.run_due()
            load_changed.wait(TICK_S)  # a small model is loaded within one tick
            load_changed.clear()
        self._leave()

    def run_due(self) -> None:
        """Make the calls that are due."""
        self._gauges = self._observer.heartbeat(len(self._runner.jobs()))
        if self._gauges["state"] != self._told_state:  # whoever waits for it need not wait for the next heartbeat
            self._told_state = self._gauges["state"]
            self._heartbeat.due = 0.0
        for call in self._calls:
            call.run_if_due(self._observer.log.retrying)

    def _end_overdue(self) -> None:
        jobs = self._runner.jobs()
        self._overdue &= {job.request_id for job in jobs}
        for job in jobs:
            error = self._limit_passed(job)
            if error is not None and job.request_id not in self._overdue:
                self._overdue.add(job.request_id)
                self._end(job, error)

    def _limit_passed(self, job: ActiveJob) -> OrcdError | None:
        now_ms = job.now_ms()
        if job.claim.deadline_ms and now_ms > job.claim.deadline_ms:
            return Expired("the deadline passed before the job was finished")
        limit_s = min(filter(None, (self._settings.job_time_limit_s, job.time_limit_s)), default=None)
        if limit_s is not None and now_ms - job.claim.started_ms > limit_s * 1000:
            return InferenceTimeout(f"the job ran longer than {limit_s:g} s")
        return None

    def _end_stalled(self) -> None:
        """End jobs that the engine gives no token, though it speaks: one may wait there for its turn for ever.

        An engine that is silent is in a long step, or hangs, which is not for this limit to judge.
        """
        limit_s = self._settings.stall_limit_s
        if not limit_s:
            return
        last_heard = self._runner.engine.process.last_heard
        before, self._last_token = self._last_token, {}
        for job in self._runner.jobs():
            if not job.is_in_engine:
                continue
            num_drawn, since = before.get(job.request_id, (-1, last_heard))
            if num_drawn != job.num_drawn:
                num_drawn, since = job.num_drawn, last_heard
            elif last_heard - since > limit_s:
                since = last_heard  # the job runner may wait for Redis, and need not hear it ten times a second
                error = InferenceTimeout(f"the engine gave the job no token for {limit_s} s")
                self._runner.put(Termination(job.job_id, error, job.claim.lease, num_drawn))
            self._last_token[job.request_id] = num_drawn, since

    def _end(self, job: ActiveJob, error: OrcdError) -> None:
        self._runner.put(Termination(job.job_id, error, job.claim.lease))

    def _announce_loading(self) -> None:
        load = self._observer.loading
        if load is not None and load is not self._announced:
            self._store.announce_loading(load.percent, load.remaining_ms)
            self._announced = load

    def _reap(self) -> None:
        try:
            messages = self._store.reap()
        except (redis.RedisError, OSError):
            self._observer.redis_failed()
            raise
        self._observer.redis_answered()
        self._unpublished |= {message.job_id: message for message in messages}
        left, error = publish_all(list(self._unpublished.values()), self._publish)
        self._unpublished = {message.job_id: message for message in left}
        if error is not None:
            raise error

    def _look_for_listeners(self) -> None:
        """Cancel jobs that want a listener and have had none for a while, as far as that was seen.

        Time in which Redis did not answer is not counted: clients may have been there, or been cut off like us.
        """
        jobs = [job for job in self._runner.jobs() if job.cancel_on_disconnect]
        now = time.monotonic()
        passed_s, self._listened_at = min(now - self._listened_at, 2 * LISTENERS_EVERY_S), now
        absent_s, self._absent_s = self._absent_s, {}
        if not jobs:
            return
        found: Any = self._store.redis.pubsub_numsub(
            *(schema.events_channel(job.job_id, self._store.key_prefix) for job in jobs)
        )
        for job, (_channel, num_listeners) in zip(jobs, found, strict=True):
            if num_listeners:
                continue
            before_s = absent_s.get(job.request_id)
            self._absent_s[job.request_id] = 0.0 if before_s is None else before_s + passed_s
            if self._absent_s[job.request_id] > DISCONNECT_AFTER_S:
                self._end(job, Cancelled("nobody listened any more"))

    def _watch_queues(self) -> None:
        figures = self._queue_watch.look()
        if figures is not None:
            self._observer.metrics.set_queues(figures)
        self._watching.every_s = TICK_S if self._queue_watch.is_counting else QUEUES_EVERY_S

    def _beat(self) -> None:
        # When a worker starts, its own limit replaces that of workers which were started before.
        self._store.limit_queue(self._settings.max_queued, replaces=not self._has_limited_queue)
        self._has_limited_queue = True
        uptime_s = int(time.monotonic() - self._started_at)
        jobs_per_s = self._observer.jobs_per_s(sum(map(_part_done, self._runner.jobs())))
        told = {**self._identity, **self._gauges, "uptime_s": uptime_s, "jobs_per_s": jobs_per_s}
        self._registry.beat(self._observer.worker_id, told)


def _part_done(job: ActiveJob) -> float:
    """How much of a job was done here, from 0 to 1; 0 where its request does not bound it."""
    request = job.claim.request
    if not isinstance(request, Request) or not request.max_tokens:
        return 0.0
    return min(1.0, job.num_drawn / (request.n * request.max_tokens))
