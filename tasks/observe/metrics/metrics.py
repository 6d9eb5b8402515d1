"""The figures of a worker, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version

from orcd.monitoring.queue_watch import QueueFigures
from orcd.result import Result
from tasks.observe.metrics.engine_metrics import EngineMetrics
from tasks.observe.metrics.finish_reason import REASONS, finish_reason
from tasks.observe.metrics.labelled_metrics import LabelledMetrics
from tasks.observe.metrics.queue_metrics import QueueMetrics
from tasks.observe.metrics.token_gaps import TokenGaps
from tasks.observe.metrics.vllm_metrics import VllmMetrics
from tasks.observe.observed_job import ObservedJob
from worker import contract
from worker.settings import Settings

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
STATES = ("succeeded", "failed", "cancelled", "expired")


class Metrics:
    """Counters, gauges and histograms of one worker. Their names are an interface: docs/metrics.md lists them.

    Each has the labels ``model``, ``device`` and ``version``, but for those of the queues. Those with vLLM's names
    are there unless the setting ``metrics_compat`` is ``none``.
    """

    def __init__(self, settings: Settings) -> None:
        labels = {"model": settings.model_name, "device": settings.device, "version": version("orcd")}
        self._metrics = metrics = LabelledMetrics(labels)
        self.registry = metrics.registry
        self._engine = EngineMetrics(metrics)
        self._token_gaps = TokenGaps()
        metrics.buckets("orcd_token_gap_seconds", "From a token to the next one of its answer", self._token_gaps.counts)
        self._vllm = (
            VllmMetrics(
                settings.model_name,
                has_prefix_cache=settings.prefix_cache,
                token_gaps=self._token_gaps.counts,
                step_sizes=self._engine.step_sizes,
            )
            if settings.metrics_compat == "vllm"
            else None
        )
        self._queues = QueueMetrics(metrics.registry)
        self._ready = metrics.gauge("orcd_ready", "Whether the worker would run a job")
        self._jobs = metrics.counter_by("state", "orcd_jobs", "Jobs ended here", STATES)
        self._errors = metrics.counter_by("code", "orcd_job_errors", "Jobs that did not succeed, by their error")
        self._tokens = metrics.counter_by("direction", "orcd_tokens", "Tokens of ended jobs", ("in", "out"))
        self._answer_tokens = metrics.counter_by("reason", "orcd_answer_tokens", "Tokens of ended answers", REASONS)
        self._resumes = metrics.counter("orcd_resumes", "Jobs taken over that had been begun before")
        self._leases_lost = metrics.counter("orcd_leases_lost", "Jobs that became another worker's while they ran here")
        self._engine_exits = metrics.counter("orcd_engine_exits", "Times the engine process ended")
        self._queue_s = metrics.histogram("orcd_queue_seconds", "Submission to first claim", SECONDS)
        self._ttft_s = metrics.histogram("orcd_first_token_seconds", "First claim to first token", SECONDS)
        self._decode_s = metrics.histogram("orcd_decode_seconds", "First token to last", SECONDS)
        self._jobs_in_flight = metrics.gauge("orcd_jobs_in_hand", "Jobs this worker has claimed")
        self._suspects = metrics.gauge("orcd_suspects", "Jobs of which one has killed the engine")
        self._jobs_per_s = metrics.gauge("orcd_jobs_per_second", "Jobs ended in a second of about the last busy minute")

    def page(self) -> bytes:
        """All of them in Prometheus's text format."""
        return self._metrics.page() + (self._vllm.page() if self._vllm else b"")

    def job_started(self, job: ObservedJob) -> None:
        """A job was claimed here."""
        if job.claim.attempt > 1 or job.claim.log:
            self._resumes.inc()

    def tokens_came(self, outputs: Iterable[contract.TokenOutput], now: float) -> None:
        """Outputs of the engine came ``now``, by the monotonic clock."""
        self._token_gaps.add(outputs, now)

    def job_ended(self, job: ObservedJob, result: Result) -> None:
        """A job reached its terminal event here."""
        self._jobs(result.state).inc()
        self._tokens("in").inc(job.num_tokens_in)
        self._tokens("out").inc(job.num_tokens_out)
        for choice in result.choices:
            self._answer_tokens(finish_reason(result, choice)).inc(len(choice.token_ids))
        if result.error is None:
            self._queue_s.add(result.queue_ms / 1000)
            self._ttft_s.add(result.ttft_ms / 1000)
            self._decode_s.add(result.decode_ms / 1000)
        else:
            self._errors(result.error.code).inc()
        if self._vllm:
            self._vllm.job_ended(job, result)

    def lease_lost(self) -> None:
        """A job that ran here is another worker's now."""
        self._leases_lost.inc()

    def engine_exited(self) -> None:
        """The engine process ended without being asked to."""
        self._engine_exits.inc()
        self._engine.engine_exited()
        self._token_gaps.clear()
        if self._vllm:
            self._vllm.engine_exited()

    def set_engine_healthy(self, healthy: bool) -> None:
        """Whether the engine takes requests."""
        self._engine.set_healthy(healthy)

    def set_engine_stats(self, stats: contract.Stats) -> None:
        """The engine's own figures."""
        growth = self._engine.update(stats)
        if self._vllm:
            self._vllm.engine_changed(stats, growth)

    def set_ready(self, ready: bool) -> None:
        """Whether the worker would run a job."""
        self._ready.set(ready)

    def set_jobs(self, num_jobs: int) -> None:
        """How many jobs this worker has claimed and not ended."""
        self._jobs_in_flight.set(num_jobs)

    def set_jobs_per_s(self, per_s: float) -> None:
        """How many jobs this worker ends in a second."""
        self._jobs_per_s.set(per_s)

    def set_queues(self, figures: QueueFigures) -> None:
        """What is in all queues."""
        self._queues.update(figures)

    def set_suspects(self, num_suspects: int) -> None:
        """Of how many jobs one has killed the engine; 0: none is looked for."""
        self._suspects.set(num_suspects)
