"""What is known of a worker's state, and who is told when it changes."""

from __future__ import annotations

import math
import threading
import time
from typing import Literal

from orcd.result import Result
from orcd.store.redis_address import RedisAddress
from tasks.observe.health.health_snapshot import HealthSnapshot, Load
from tasks.observe.job_rate import JobRate
from tasks.observe.job_tracer import JobTracer
from tasks.observe.metrics.engine_metrics import kv_use
from tasks.observe.metrics.metrics import Metrics
from tasks.observe.observed_job import ObservedJob
from tasks.observe.worker_log import WorkerLog
from worker import contract
from worker.log import EventLog
from worker.settings import Settings

SILENT_S = 5.0
"""Redis, or Celery's event loop, is away if nothing was heard of it for so long. The loop waits for Redis as long."""


class Observer:
    """The state of one worker's engine, with the log and the metrics that follow it.

    Told by the threads of the worker, read by the health server and the pool. What concerns the log alone is said to
    ``log``.
    """

    def __init__(self, log: EventLog, worker_id: str, settings: Settings, tracer: JobTracer | None = None) -> None:
        self.worker_id = worker_id
        self.model = settings.model_name
        self.log = WorkerLog(log, RedisAddress.parse(settings.redis_url))
        self.metrics = Metrics(settings)
        self._tracer = tracer
        self.loading: contract.Load | None = None
        """How far the engine had loaded its model when it last said so; ``load_changed`` is set each time."""
        self.load_changed = threading.Event()
        self.has_dead_thread = False
        self.is_draining = False
        self._is_loaded = False
        self._max_sequences = 0
        self._stats: contract.Stats | None = None
        self._stats_at = 0.0
        self._tokens_per_s = 0.0
        self._num_jobs = 0
        self._job_rate = JobRate()
        self._redis_seen_at: float | None = None
        self._loop_seen_at: float | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the engine is loaded, nothing is wrong and the worker stays; while it is not so, no job is taken."""
        return self.state == "ready"

    @property
    def is_unhealthy(self) -> bool:
        """Whether the engine says that something is wrong with it, or a thread of the worker has died."""
        return self.has_dead_thread or (self._stats is not None and not self._stats.healthy)

    @property
    def state(self) -> Literal["loading", "ready", "draining", "unhealthy"]:
        """The worker's state in one word, as `orcd.status.WorkerStatus` says."""
        if self.is_draining:
            return "draining"
        if self.is_unhealthy:
            return "unhealthy"
        return "ready" if self._is_loaded else "loading"

    @property
    def num_runnable(self) -> int:
        """Sequences that the engine can run at a time now: fewer while there are too few KV blocks for more."""
        if not self.is_ready:
            return 0
        return self._stats.running if self._stats is not None and self._stats.lacks_blocks else self._max_sequences

    @property
    def problem(self) -> str:
        """Why the worker would run no job now; empty if it would."""
        if self.has_dead_thread:
            return "a thread of the worker has died"
        if self.is_unhealthy:
            return "the engine is not healthy; the worker's log says why"
        if self.is_draining:
            return "the worker takes no more jobs and leaves"
        if not self._is_loaded:
            percent = self.loading.percent if self.loading else 0
            return f"the model is being loaded, {percent} %" if percent < 100 else "the engine is being started"
        if not _is_recent(self._redis_seen_at):
            return "Redis is away or refuses commands"
        return "" if _is_recent(self._loop_seen_at) else "Celery's event loop stands still"

    def health(self, *, with_metrics: bool) -> HealthSnapshot:
        """What probes are told, if it is wanted with the page for Prometheus."""
        problem, stats = self.problem, self._stats
        num_answers = stats.running + stats.waiting if stats else 0
        load = Load(
            jobs=self._num_jobs,
            running=stats.running if stats else 0,
            waiting=stats.waiting if stats else 0,
            max_sequences=self._max_sequences,
            load=round(num_answers / self._max_sequences, 3) if self._max_sequences else 0.0,
            kv_use=round(kv_use(stats), 3) if stats else 0.0,
            tokens_per_s=round(self._tokens_per_s, 1),
            load_percent=self.loading.percent if self.loading else None,
        )
        self.metrics.set_ready(not problem)
        page = self.metrics.page() if with_metrics else None
        return HealthSnapshot(not self.is_unhealthy, self.state, problem, load, page)

    def redis_answered(self) -> None:
        """Redis has done what a worker needs of it."""
        self._redis_seen_at = time.monotonic()

    def redis_failed(self) -> None:
        """Redis is away, or has refused to do that."""
        self._redis_seen_at = -math.inf

    def close(self) -> None:
        """The worker ends: what was not told yet is told now."""
        if self._tracer is not None:
            self._tracer.close()
        self.log.shutdown()

    def loop_turned(self) -> None:
        """Celery's event loop, which takes messages, has made a turn."""
        self._loop_seen_at = time.monotonic()

    def drains(self) -> None:
        """The worker is told to leave: it takes no more jobs. Only sets a flag, as signal handlers call it."""
        self.is_draining = True

    def thread_died(self, name: str, error: BaseException | None) -> None:
        """A thread has ended that must not: the worker takes no more jobs, and will leave."""
        self.has_dead_thread = True
        self.metrics.set_engine_healthy(False)
        self.log.crashed(error, thread=name)

    def loads(self, load: contract.Load) -> None:
        """The engine has read some more of the model."""
        self.loading = load
        self.load_changed.set()
        self.log.load_progress(load)

    def ready(self, ready: contract.Ready) -> None:
        """The engine takes requests."""
        self._is_loaded, self._max_sequences = True, ready.max_sequences
        self.metrics.set_engine_healthy(not self.is_unhealthy)
        self.log.ready(ready)

    def stats(self, stats: contract.Stats) -> None:
        """Figures of the engine, about once a second."""
        if not stats.healthy and not self.is_unhealthy:
            self.log.unhealthy()
        now = time.monotonic()
        if self._stats is not None:
            self._tokens_per_s = (stats.output_tokens - self._stats.output_tokens) / max(now - self._stats_at, 1e-3)
        self._stats, self._stats_at = stats, now
        self.metrics.set_engine_stats(stats)

    def engine_exited(self, code: int) -> None:
        """The engine process ended without being asked to."""
        self._is_loaded, self._stats, self._tokens_per_s = False, None, 0.0
        self.metrics.engine_exited()
        self.log.engine_exited(code)

    def isolates(self, num_suspects: int, group_size: int) -> None:
        """One of so many jobs has killed the engine, and so many of them run apart from all others; 0: no more."""
        self.metrics.set_suspects(num_suspects)
        self.log.isolates(num_suspects, group_size)

    def job_started(self, job: ObservedJob) -> None:
        """A job was claimed here."""
        self.metrics.job_started(job)
        self.log.execute_start(job)

    def job_dropped(self, job: ObservedJob, *, is_lost: bool) -> None:
        """A job that ran here is another worker's now, or was given back."""
        if is_lost:
            self.metrics.lease_lost()
        if self._tracer is not None:
            self._tracer.job_left(job, job.result, "lease_lost" if is_lost else "given_back")

    def job_ended(self, job: ObservedJob, result: Result) -> None:
        """A job reached its terminal event here."""
        self._job_rate.ended()
        self.metrics.job_ended(job, result)
        if self._tracer is not None:
            self._tracer.job_left(job, result)
        self.log.execute_end(job, result)

    def jobs_per_s(self, num_done: float) -> float:
        """How many jobs the worker ends in a second; ``num_done`` is the sum of the parts done of those that run."""
        per_s = round(self._job_rate.per_s(num_done), 4)
        self.metrics.set_jobs_per_s(per_s)
        return per_s

    def heartbeat(self, num_jobs: int) -> dict[str, int | float | str]:
        """What the worker's heartbeat says; ``num_jobs`` are in flight."""
        self._num_jobs = num_jobs
        self._job_rate.tick(is_busy=num_jobs > 0)
        self.metrics.set_jobs(num_jobs)
        stats = self._stats
        return {
            "model": self.model,
            "ready": int(self.is_ready),
            "state": self.state,
            "jobs": num_jobs,
            "running": stats.running if stats else 0,
            "waiting": stats.waiting if stats else 0,
            "output_tokens": stats.output_tokens if stats else 0,
            "tokens_per_s": round(self._tokens_per_s, 1),
            "kv_use": round(kv_use(stats), 3) if stats else 0.0,
            "load_percent": self.loading.percent if self.loading else 0,
        }


def _is_recent(seen_at: float | None) -> bool:
    """Whether something was seen a moment ago, or nobody has looked yet."""
    return seen_at is None or time.monotonic() - seen_at < SILENT_S
