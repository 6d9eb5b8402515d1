"""How long a job will wait: what is ahead of it, and how fast the workers are that take such jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orcd.monitoring.queue_tally import TAKES_JOBS
from orcd.status import Status, WaitEstimate, WorkerStatus


class WaitCount:
    """Adds up what the ahead script answers, call by call."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._cursor: bytes | None = b"0"
        self._num_ahead = 0

    @property
    def arguments(self) -> list[str | bytes]:
        """What to call the script with next; empty when all is counted."""
        return [] if self._cursor is None else [self._job_id, self._cursor]

    def add(self, answer: Sequence[Any]) -> None:
        """Count what the script has answered."""
        cursor, number = answer
        self._num_ahead += number
        self._cursor = None if cursor == b"0" else cursor

    def estimate(self, status: Status, workers: Sequence[WorkerStatus]) -> WaitEstimate:
        """For a job of this status when these workers are alive."""
        taking = [worker for worker in workers if worker.state in TAKES_JOBS]
        serving = [worker for worker in taking if status.asked_model in (None, worker.model)]
        is_queued = status.state == "queued"
        loading = [worker.load_percent for worker in serving if worker.state == "loading"]
        jobs_per_s = sum(worker.jobs_per_s for worker in serving)
        waits_for_load = len(loading) == len(serving)
        return WaitEstimate(
            job_id=status.job_id,
            state=status.state,
            ahead=self._num_ahead if is_queued else 0,
            starts_in_ms=round(1000 * self._num_ahead / jobs_per_s)
            if is_queued and jobs_per_s and not waits_for_load
            else None,
            jobs_per_s=jobs_per_s,
            reason=status.reason,
            served=bool(serving),
            models=sorted({worker.model for worker in taking}),
            load_percent=max(loading) if loading and waits_for_load else None,
        )
