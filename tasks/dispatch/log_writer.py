"""The job runner's way to the token logs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

import redis

from orcd.store.backoff import Backoff
from orcd.store.job_store import Appended, JobStore
from tasks.dispatch.active_job import ActiveJob
from tasks.observe.observer import Observer

FIRST_RETRY_S = 0.05
MAX_RETRY_S = 2.0


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
        backoff = Backoff(FIRST_RETRY_S, MAX_RETRY_S)
        while not self._stopping.is_set():
            try:
                answers = self._store.append([append for _, append in writing])
            except redis.RedisError as error:
                self._observer.log.trouble("append", error)
                self._stopping.wait(backoff.failed(error))
            else:
                written = [(job, answer) for (job, _), answer in zip(writing, answers, strict=True)]
                self._note_listeners(written)
                return written
        return []

    @staticmethod
    def _note_listeners(written: Iterable[tuple[ActiveJob, Appended]]) -> None:
        now = time.monotonic()
        for job, answer in written:
            if answer.num_listeners:
                job.last_listened = now
