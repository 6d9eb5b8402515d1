"""The threads that do what takes a while for the pool: Celery's event loop must not wait for Redis."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Generic, TypeVar

import redis

from tasks.supervised_thread import OnDeath, SupervisedThread

NUM_THREADS = 2
"""No stream waits for what they do, and each takes its share of the interpreter from the threads that start jobs."""
PAUSE_S = 0.25
"""A thread whose work has failed waits so long."""
MAX_TOGETHER = 32
"""Items that are begun together, at most."""

TOGETHER_S = 0.03
"""Where several came together, the next ones are waited for so long: who runs jobs needs the interpreter sooner."""
MAX_WAITING = 256
"""So many pieces of work are no backlog: of hundreds of jobs that end together the next ones shall not begin later."""

Work = Callable[[], object]
Item = TypeVar("Item")


class Finisher(Generic[Item]):
    """Does each piece of work that it is given on one of a few threads, in order.

    What fails with an error of Redis is done again, behind what else there is, until it succeeds: so it must be such
    that it can be begun again. Any other failure concerns that piece only. ``on_failure`` is told of both. ``prepare``
    is called once on each thread.

    Of items that it is given ``begin`` gets those that wait, many at once, and waits for Redis itself; what it returns
    is the work that is left.
    """

    def __init__(
        self,
        prepare: Work,
        begin: Callable[[Sequence[Item]], Iterable[Work]],
        on_failure: Callable[[str, Exception], None],
        on_death: OnDeath,
    ) -> None:
        self._prepare = prepare
        self._begin = begin
        self._on_failure = partial(on_failure, "finish")
        self._items: deque[Item] = deque()
        self._came_together = False
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._giving_up = threading.Event()
        self._threads = [SupervisedThread(f"finisher {n}", self._run, on_death) for n in range(NUM_THREADS)]

    @property
    def num_waiting(self) -> int:
        """Pieces of work that no thread has begun."""
        return self._work.qsize()

    @property
    def backlog(self) -> int:
        """How many of these are too many."""
        return max(0, self.num_waiting - MAX_WAITING)

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

    def submit_item(self, item: Item) -> None:
        """Queue an item; from any thread."""
        self._items.append(item)
        self._work.put(self._begin_items)

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
            self._try(work)

    def _try(self, work: Work) -> None:
        try:
            work()
        except redis.RedisError as error:
            self._on_failure(error)
            self._work.put(work)
            self._giving_up.wait(PAUSE_S)
        except Exception as error:
            self._on_failure(error)

    def _begin_items(self) -> None:
        if self._came_together and 0 < len(self._items) < MAX_TOGETHER:
            self._giving_up.wait(TOGETHER_S)
        items: list[Item] = []
        try:
            while len(items) < MAX_TOGETHER:
                items.append(self._items.popleft())
        except IndexError:  # there are no more; none at all where they were begun with earlier ones
            pass
        if items:
            self._came_together = len(items) > 1
            for work in self._begin(items):
                self._try(work)
