"""The threads that do what takes a while for the pool: Celery's event loop must not wait for Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

import redis

from tasks.supervised_thread import OnDeath, SupervisedThread

NUM_THREADS = 2
"""No stream waits for what they do, and each takes its share of the interpreter from the threads that start jobs."""
PAUSE_S = 0.25
"""A thread whose work has failed waits so long."""

Work = Callable[[], object]


class Finisher:
    """Does each piece of work that it is given on one of a few threads, in order.

    What fails with an error of Redis is done again, behind what else there is, until it succeeds: so it must be such
    that it can be begun again. Any other failure concerns that piece only. ``on_failure`` is told of both. ``prepare``
    is called once on each thread.
    """

    def __init__(self, prepare: Work, on_failure: Callable[[str, Exception], None], on_death: OnDeath) -> None:
        self._prepare = prepare
        self._on_failure = partial(on_failure, "finish")
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._giving_up = threading.Event()
        self._threads = [SupervisedThread(f"finisher {n}", self._run, on_death) for n in range(NUM_THREADS)]

    @property
    def num_waiting(self) -> int:
        """Pieces of work that no thread has begun."""
        return self._work.qsize()

    @property
    def is_waiting(self) -> bool:
        """Whether there is still time to wait for a Redis that is away."""
        return not self._giving_up.is_set()

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def submit(self, work: Work) -> None:
        """Queue a piece of work; from any thread."""
        self._work.put(work)

    def stop(self, timeout_s: float) -> None:
        """Do what is queued; what is not done in time is left."""
        for thread in self._threads:
            thread.stop()
        for _ in self._threads:  # only now: any of them may be the one that takes it
            self._work.put(None)
        end = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(end - time.monotonic())
        self._giving_up.set()

    def _run(self) -> None:
        self._prepare()
        while (work := self._work.get()) is not None:
            try:
                work()
            except redis.RedisError as error:
                self._on_failure(error)
                self._work.put(work)
                self._giving_up.wait(PAUSE_S)
            except Exception as error:
                self._on_failure(error)
