"""What is known of a worker's state, and who is told when it changes."""

from __future__ import annotations

from tasks.observe.metrics import Metrics
from tasks.observe.observed_job import ObservedJob
from tasks.observe.worker_log import WorkerLog
from worker import contract
from worker.log import EventLog


class Observer:
    """The state of one worker's engine, with the log and the metrics that follow it.

    Told by the job runner, read by the health server and the pool. What concerns the log alone is said to ``log``.
    """

    def __init__(self, log: EventLog, worker_id: str, model: str) -> None:
        self.worker_id = worker_id
        self.model = model
        self.log = WorkerLog(log)
        self.metrics = Metrics()
        self._is_loaded = False
        self._stats: contract.Stats | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the engine is loaded and does not say that it is unhealthy; while it is not, no job is taken."""
        return self._is_loaded and not self.is_unhealthy

    @property
    def is_unhealthy(self) -> bool:
        """Whether the engine runs and says that something is wrong with it."""
        return self._stats is not None and not self._stats.healthy

    def ready(self, ready: contract.Ready) -> None:
        """The engine takes requests."""
        self._is_loaded = True
        self.metrics.set_engine_healthy(self.is_ready)
        self.log.ready(ready)

    def stats(self, stats: contract.Stats) -> None:
        """Figures of the engine, about once a second."""
        if not stats.healthy and not self.is_unhealthy:
            self.log.unhealthy()
        self._stats = stats
        self.metrics.set_engine_stats(stats)

    def engine_exited(self, code: int) -> None:
        """The engine process ended without being asked to."""
        self._is_loaded, self._stats = False, None
        self.metrics.engine_exited()
        self.log.engine_exited(code)

    def job_ended(self, job: ObservedJob) -> None:
        """A job reached its terminal event here."""
        result = job.result
        self.metrics.job_ended(job, result)
        self.log.execute_end(job, result)

    def heartbeat(self, num_jobs: int) -> dict[str, int | str]:
        """What the worker's heartbeat says; ``num_jobs`` are in flight."""
        self.metrics.set_jobs_in_flight(num_jobs)
        stats = self._stats
        return {
            "model": self.model,
            "ready": int(self.is_ready),
            "jobs": num_jobs,
            "running": stats.running if stats else 0,
            "waiting": stats.waiting if stats else 0,
            "output_tokens": stats.output_tokens if stats else 0,
        }
