"""What is in the queues, counted in many small parts, so that a deep queue does not keep Redis from its other work."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from orcd.status import QueueStatus, WorkerStatus, model_of
from orcd.store.enqueue import queue_name

ANY_MODEL = queue_name(None)
TAKES_JOBS = frozenset({"", "loading", "ready"})
"""States of workers that take jobs now or soon; an older worker does not tell its state."""


class QueueTally:
    """Adds up what the queues script answers, call by call."""

    def __init__(self) -> None:
        self._steps = ["queued", "running", "messages"]
        self._cursor = b"0"
        self._waiting: dict[str, Counter[int]] = {}
        self._running: Counter[str] = Counter()
        self._messages: Counter[str] = Counter()
        self._oldest_ms: dict[str, int] = {}

    @property
    def arguments(self) -> list[str | bytes]:
        """What to call the script with next; empty when all is counted."""
        return [self._steps[0], self._cursor] if self._steps else []

    def add(self, answer: Sequence[Any]) -> None:
        """Count what the script has answered."""
        now_ms, self._cursor, *rows = answer
        for queue, priority, number, since_ms in rows:
            self._count(queue.decode(), priority, number, max(0, now_ms - since_ms))
        if self._cursor == b"0":
            del self._steps[0]

    def queues(self, workers: Sequence[WorkerStatus]) -> list[QueueStatus]:
        """The queues that hold something or that one of these workers serves, by name."""
        serving: dict[str, list[WorkerStatus]] = defaultdict(list)
        for worker in workers:
            if worker.state in TAKES_JOBS:
                serving[queue_name(worker.model)].append(worker)
                serving[ANY_MODEL].append(worker)
        names = {*serving, *self._waiting, *self._running, *self._messages}
        rates = {name: sum(worker.jobs_per_s for worker in serving.get(name, ())) for name in names}
        served = sum(self._num_waiting(name) for name in names if name in serving)
        return [
            self._queue(name, len(serving.get(name, ())), self._drain_ms(name, rates, served)) for name in sorted(names)
        ]

    def _count(self, queue: str, priority: int, number: int, age_ms: int) -> None:
        match self._steps[0]:
            case "queued":
                self._waiting.setdefault(queue, Counter())[priority] += number
                self._oldest_ms[queue] = max(age_ms, self._oldest_ms.get(queue, 0))
            case "running":
                self._running[queue] += number
            case _:
                self._messages[queue] += number

    def _num_waiting(self, name: str) -> int:
        return self._waiting.get(name, Counter()).total()

    def _drain_ms(self, name: str, rates: Mapping[str, float], num_served: int) -> int | None:
        """A worker's time goes to its model's queue and to that for any model, to which all workers give theirs."""
        num_waiting, rate = self._num_waiting(name), rates[name]
        if not num_waiting:
            return 0
        if not rate:
            return None
        if name == ANY_MODEL:
            return round(1000 * num_served / rate)
        return round(1000 * (num_waiting / rate + self._num_waiting(ANY_MODEL) / rates[ANY_MODEL]))

    def _queue(self, name: str, num_workers: int, drain_ms: int | None) -> QueueStatus:
        waiting = self._waiting.get(name, Counter())
        return QueueStatus(
            queue=name,
            model=model_of(name),
            workers=num_workers,
            running=self._running[name],
            waiting=waiting.total(),
            oldest_ms=self._oldest_ms.get(name),
            priorities=dict(sorted(waiting.items())),
            messages=self._messages[name],
            drain_ms=drain_ms,
        )
