"""Jobs by their state, listed in many small parts, so that many jobs do not keep Redis from its other work."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from orcd.errors import InvalidRequest
from orcd.status import JobSummary, model_of
from orcd.store import schema

LIVE = ("running", "queued")


class JobList:
    """Collects what the jobs script answers, call by call, and keeps the ``limit`` first of each state.

    First are running and waiting jobs that were submitted first, and ended ones that ended last. Without a ``state`` it
    lists those that run and then those that wait. Raises `InvalidRequest` for a state that there is not.
    """

    def __init__(self, state: str | None, model: str | None, limit: int) -> None:
        if state is not None and state not in schema.STATES:
            raise InvalidRequest(f"state: must be one of {', '.join(schema.STATES)}")
        if limit < 1:
            raise InvalidRequest("limit: must be at least 1")
        self._states = [state] if state else list(LIVE)
        self._model = model
        self._limit = limit
        self._cursor = b"0"
        self._found: dict[str, JobSummary] = {}
        self._listed: list[JobSummary] = []

    @property
    def arguments(self) -> list[str | bytes]:
        """What to call the script with next; empty when all is listed."""
        return [self._states[0], self._cursor] if self._states else []

    def add(self, answer: Sequence[Any]) -> None:
        """Take what the script has answered."""
        self._cursor, now_ms, *rows = answer
        for row in rows:
            with suppress(ValueError):
                job = _summary(self._states[0], [cell.decode() for cell in row], now_ms)
                if self._model in (None, job.model):
                    self._found[job.job_id] = job
        is_done = self._cursor == b"0"
        if is_done or len(self._found) > 2 * self._limit:
            self._found = {job.job_id: job for job in sorted(self._found.values(), key=_rank)[: self._limit]}
        if is_done:
            self._listed += self._found.values()
            self._found = {}
            del self._states[0]

    def jobs(self) -> list[JobSummary]:
        """What was listed."""
        return self._listed


def _rank(job: JobSummary) -> int:
    return -(job.finished_ms or 0) or job.created_ms


def _summary(state: str, cells: Sequence[str], now_ms: int) -> JobSummary:
    """Raises ValueError for a record that cannot be read."""
    job_id, queue, model, owner, priority, attempt, created_ms, started_ms, finished_ms, outcome = cells
    return JobSummary(
        job_id=job_id,
        state=state,
        model=model or model_of(queue),
        worker=owner or None,
        priority=int(priority),
        attempt=int(attempt),
        created_ms=int(created_ms),
        started_ms=int(started_ms) if started_ms else None,
        finished_ms=int(finished_ms) if finished_ms else None,
        outcome=outcome,
        as_of_ms=now_ms,
    )
