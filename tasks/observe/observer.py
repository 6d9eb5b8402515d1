"""What is known of a worker's state, and who is told when it changes."""

from __future__ import annotations

import threading
import time
from typing import Literal

from tasks.observe.metrics import Metrics
from tasks.observe.observed_job import ObservedJob
from tasks.observe.worker_log import WorkerLog
from worker import contract
from worker.log import EventLog


class Observer:
    """The state of one worker's engine, with the log and the metrics that follow it.

    Told by the threads of the worker, read by the health server and the pool. What concerns the log alone is said to
    ``log``.
    """

    def __init__(self, log: EventLog, worker_id: str, model: str) -> None:
        self.worker_id = worker_id
        self.model = model
        self.log = WorkerLog(log)
        self.metrics = Metrics()
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

    def job_ended(self, job: ObservedJob) -> None:
        """A job reached its terminal event here."""
        result = job.result
        self.metrics.job_ended(job, result)
        self.log.execute_end(job, result)

    def heartbeat(self, num_jobs: int) -> dict[str, int | float | str]:
        """What the worker's heartbeat says; ``num_jobs`` are in flight."""
        self.metrics.set_jobs_in_flight(num_jobs)
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
        }
