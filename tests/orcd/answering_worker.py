"""A worker played by the test: a thread that answers whatever is queued."""

from __future__ import annotations

import math
import threading
from typing import Any

import redis

from orcd.store import schema
from tests.orcd.job_writer import MakeStore, Writer, claimed


class AnsweringWorker:
    """Answers every queued job with the tokens `` 1 2 3``."""

    def __init__(self, connection: redis.Redis, make_store: MakeStore) -> None:
        self._redis = connection
        self._store = make_store()
        self._store.renew({}, is_ready=True)  # says that it serves the model
        self.max_jobs = math.inf
        """How many jobs it answers in all; the others wait until this is raised."""
        self._num_answered = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stopping.wait(0.01):
            queued: Any = self._redis.zrange(schema.QUEUED, 0, 4)
            for job_id in queued:
                if self._num_answered >= self.max_jobs:
                    break
                self._num_answered += 1
                writer = claimed(self._store, str(job_id, "ascii"))
                writer.start()
                writer.tokens(3)
                self.end(writer)

    def end(self, writer: Writer) -> None:
        writer.end()


class FailingWorker(AnsweringWorker):
    """Fails every job."""

    def end(self, writer: Writer) -> None:
        writer.fail("VRAM_OOM", "does not fit")
