"""The job runner's way to the token logs."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import partial

from orcd.store.backoff import retry
from orcd.store.job_store import Appended, JobStore
from tasks.dispatch.active_job import ActiveJob
from tasks.observe.observer import Observer


class LogWriter:
    """Appends the events of many jobs to their token logs in one call. Belongs to the job runner's thread."""

    def __init__(self, store: JobStore, observer: Observer, stopping: threading.Event) -> None:
        """``stopping`` ends the waiting for a Redis that is away."""
        self._store = store
        self._observer = observer
        self._stopping = stopping

    def append(self, jobs: Iterable[ActiveJob]) -> list[tuple[ActiveJob, Appended]]:
        """Write what the jobs have to say; returns those that had anything, with what the append found.

        Waits for Redis however long it is away: nothing that was generated is dropped. Returns nothing if the worker
        stops meanwhile.
        """
        writing = [(job, append) for job in jobs if (append := job.take_append()).events]
        appends = [append for _, append in writing]
        answers = retry(
            lambda: self._store.append(appends), self._stopping, partial(self._observer.log.retrying, "append")
        )
        if answers is None:
            return []
        return [(job, answer) for (job, _), answer in zip(writing, answers, strict=True)]
