"""The log events of a worker, which `worker.log` writes."""

from __future__ import annotations

import time
from typing import Any

import redis

from orcd.errors import OrcdError, places
from orcd.monitoring.check import Check
from orcd.result import Result
from orcd.store.redis_address import RedisAddress
from orcd.store.redis_connection import explain
from orcd.store.submission import is_well_formed
from tasks.observe.observed_job import ObservedJob
from worker import contract
from worker.log import EventLog

RETRY_EVERY_S = 5.0
"""So often it is said that something is tried again and again."""
LOAD_STEP_PERCENT = 10


class WorkerLog:
    """Says what happens to a worker, its engine and its jobs, in events whose names and fields are an interface."""

    def __init__(self, log: EventLog, redis_address: RedisAddress) -> None:
        self._log = log
        self._redis_address = redis_address
        self._load_percent = -LOAD_STEP_PERCENT
        self._last_retry: dict[str, float] = {}

    def flush(self) -> None:
        """Write what waits."""
        self._log.flush()

    def startup(self, device: str) -> None:
        """The worker begins."""
        self._log.event("startup", device=device)
        self._log.event("model_load_start", device=device)

    def no_chat_template(self, problem: str) -> None:
        """The model completes prompts, but requests with messages will be refused."""
        self._log.event("no_chat_template", level="warning", message=problem)

    def odd_vocabulary(self, warning: str) -> None:
        """The model's file says something of its tokens that cannot be, and is put up with."""
        self._log.event("odd_vocabulary", level="warning", message=warning)

    def redis_setup(self, problem: Check) -> None:
        """Redis is set up so that it may lose jobs."""
        self._log.event("redis_setup", level="warning", message=f"{problem.found}; {problem.advice}")

    def load_progress(self, load: contract.Load) -> None:
        """The engine has read some more of the model; logged every ten percent."""
        if load.percent < 100 and load.percent // LOAD_STEP_PERCENT == self._load_percent // LOAD_STEP_PERCENT:
            return
        self._load_percent = load.percent
        self._log.event(
            "model_load_progress",
            percent=load.percent,
            bytes=load.num_bytes,
            total_bytes=load.total_bytes,
            remaining_ms=load.remaining_ms,
        )

    def ready(self, ready: contract.Ready) -> None:
        """The engine takes requests."""
        self._log.event(
            "model_load_complete", load_ms=ready.load_ms, memory_bytes=ready.memory_bytes, device=ready.device
        )
        self._log.event("ready", engine_pid=ready.pid, max_sequence_tokens=ready.max_sequence_tokens)

    def unhealthy(self) -> None:
        """The engine has begun to say that something is wrong with it; its own log says what."""
        self._log.event("unhealthy", level="error")

    def execute_start(self, job: ObservedJob) -> None:
        """A job was claimed; written by `flush`."""
        claim = job.claim
        self._log.later(
            "execute_start",
            job_id=job.job_id,
            attempt=claim.attempt,
            tokens_in=job.num_tokens_in,
            queue_ms=claim.started_ms - claim.created_ms,
        )

    def execute_end(self, job: ObservedJob, result: Result) -> None:
        """A job reached its terminal event here; written by `flush`."""
        if result.error is not None:
            self._log.later(
                "execute_end",
                level="warning",
                job_id=job.job_id,
                state=result.state,
                code=result.error.code,
                attempt=job.claim.attempt,
                tokens_in=job.num_tokens_in,
                tokens_out=job.num_tokens_out,
            )
            return
        per_s = (result.tokens_out - 1) * 1000 / result.decode_ms if result.decode_ms else None
        self._log.later(
            "execute_end",
            job_id=job.job_id,
            state=result.state,
            tokens_in=result.tokens_in,
            tokens_out=result.tokens_out,
            queue_ms=result.queue_ms,
            ttft_ms=result.ttft_ms,
            decode_ms=result.decode_ms,
            tokens_per_s=None if per_s is None else round(per_s, 1),
            prefix_hit_tokens=job.usage.prefix_hit_tokens,
            preemptions=job.usage.preemptions,
            attempt=job.claim.attempt,
            text_sha256=job.text_sha256,
        )

    def engine_exited(self, code: int) -> None:
        """The engine process ended without being asked to."""
        self._log.event("error", level="error", code="ENGINE_LOST", exit_code=code)

    def isolates(self, num_suspects: int, group_size: int) -> None:
        """One of so many jobs has killed the engine, and so many of them run apart from all others; 0: no more."""
        if num_suspects:
            self._log.event("isolation", level="warning", suspects=num_suspects, group=group_size)
        else:
            self._log.event("isolation_end")

    def engine_hung(self, silent_s: float) -> None:
        """The engine has work and says nothing; it will be killed."""
        self._log.event("error", level="error", code="ENGINE_LOST", silent_s=round(silent_s, 1))

    def error(self, error: OrcdError | OSError) -> None:
        """An error that concerns the whole worker; of the system's without the file, which a user may have named."""
        if isinstance(error, OSError):
            found = f"the system gives this worker no further process, thread or file ({error.strerror})"
            error = OrcdError(f"{found}; raise its limits: ulimit, those of its container, or systemd's TasksMax")
        self._log.event("error", level="error", code=error.code, message=error.message)

    def refused(self, task_or_job_id: str, error: OrcdError) -> None:
        """A message or a job will not be run; the error's text stays unsaid, as it may name what a sender made up."""
        shown = task_or_job_id if is_well_formed(task_or_job_id) else None
        self._log.event("refused", level="warning", job_id=shown, code=error.code)

    def crashed(self, error: BaseException | None, thread: str | None = None) -> None:
        """A bug of ours, which may have ended a thread; its text stays unsaid, as it may hold what users wrote."""
        cause, where = (type(error).__name__, places(error)) if error is not None else (None, None)
        self._log.event("error", level="error", code="INTERNAL", cause=cause, where=where, thread=thread)

    def retrying(self, doing: str, error: Exception) -> None:
        """Redis or the broker is away; said once in a while, as it is tried again all the time."""
        now = time.monotonic()
        if now - self._last_retry.get(doing, -RETRY_EVERY_S) >= RETRY_EVERY_S:
            self._last_retry[doing] = now
            self._failed(doing, error)

    def unannounced(self, num_jobs: int, error: Exception) -> None:
        """So many jobs were given back, but their messages could not be sent: they wait until a reaper sends them."""
        self._failed("publish", error, jobs=num_jobs)

    def _failed(self, doing: str, error: Exception, **fields: Any) -> None:
        """What Redis refuses is told in words; another error's text stays unsaid, as it may hold what users wrote."""
        refusal = error if isinstance(error, redis.RedisError) else error.__cause__
        shown = explain(refusal, self._redis_address) if isinstance(refusal, redis.RedisError) else OrcdError()
        cause, message = type(error).__name__, shown.message or None
        self._log.event("error", level="warning", code=shown.code, doing=doing, message=message, cause=cause, **fields)

    def draining(self, num_jobs: int, timeout_s: float) -> None:
        """The worker is told to leave: it takes no more jobs, and those in flight have so long to end."""
        self._log.event("draining", jobs=num_jobs, timeout_s=round(max(0.0, timeout_s), 1))

    def shutdown(self) -> None:
        """The worker ends."""
        self._log.event("shutdown")
