"""The figures of a worker, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from orcd.result import Result
from tasks.observe.observed_job import ObservedJob
from worker import contract

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Counters, gauges and histograms of one worker, in a ``registry`` of its own. Their names are an interface."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._jobs = Counter("orcd_jobs", "Jobs ended here", ["state"], registry=self.registry)
        self._tokens = Counter("orcd_tokens", "Tokens of ended jobs", ["direction"], registry=self.registry)
        self._engine_exits = Counter("orcd_engine_exits", "Times the engine process ended", registry=self.registry)
        self._queue_s = self._histogram("orcd_queue_seconds", "Submission to first claim")
        self._ttft_s = self._histogram("orcd_first_token_seconds", "First claim to first token")
        self._decode_s = self._histogram("orcd_decode_seconds", "First token to last")
        self._jobs_in_flight = Gauge("orcd_jobs_in_hand", "Jobs this worker has claimed", registry=self.registry)
        self._suspects = Gauge("orcd_suspects", "Jobs of which one has killed the engine", registry=self.registry)
        self._engine = {
            name: Gauge(f"orcd_engine_{name}", f"Engine: {name.replace('_', ' ')}", registry=self.registry)
            for name in contract.Stats.__struct_fields__
        }

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=SECONDS, registry=self.registry)

    def job_ended(self, job: ObservedJob, result: Result) -> None:
        """A job reached its terminal event here."""
        self._jobs.labels(result.state).inc()
        self._tokens.labels("in").inc(job.num_tokens_in)
        self._tokens.labels("out").inc(job.num_tokens_out)
        if result.error is None:
            self._queue_s.observe(result.queue_ms / 1000)
            self._ttft_s.observe(result.ttft_ms / 1000)
            self._decode_s.observe(result.decode_ms / 1000)

    def engine_exited(self) -> None:
        """The engine process ended without being asked to."""
        self._engine_exits.inc()
        self.set_engine_healthy(False)

    def set_engine_healthy(self, healthy: bool) -> None:
        """Whether the engine takes requests."""
        self._engine["healthy"].set(healthy)

    def set_engine_stats(self, stats: contract.Stats) -> None:
        """The engine's own figures."""
        for name, gauge in self._engine.items():
            gauge.set(getattr(stats, name))

    def set_jobs_in_flight(self, num_jobs: int) -> None:
        """How many jobs this worker has claimed and not ended."""
        self._jobs_in_flight.set(num_jobs)

    def set_suspects(self, num_suspects: int) -> None:
        """Of how many jobs one has killed the engine; 0: none is looked for."""
        self._suspects.set(num_suspects)
