"""What is in the queues, counted in many small parts, so that a deep queue does not keep Redis from its other work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from orcd.status import QueueStatus, WorkerStatus
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
        models = Counter(queue_name(worker.model) for worker in workers if worker.state in TAKES_JOBS)
        if models:
            models[ANY_MODEL] = models.total()
        names = {*models, *self._waiting, *self._running, *self._messages}
        return [self._queue(name, models[name]) for name in sorted(names)]

    def _count(self, queue: str, priority: int, number: int, age_ms: int) -> None:
        match self._steps[0]:
            case "queued":
                self._waiting.setdefault(queue, Counter())[priority] += number
                self._oldest_ms[queue] = max(age_ms, self._oldest_ms.get(queue, 0))
            case "running":
                self._running[queue] += number
            case _:
                self._messages[queue] += number

    def _queue(self, name: str, num_workers: int) -> QueueStatus:
        waiting = self._waiting.get(name, Counter())
        return QueueStatus(
            queue=name,
            model=None if name == ANY_MODEL else unquote(name.removeprefix(f"{ANY_MODEL}.")),
            workers=num_workers,
            running=self._running[name],
            waiting=waiting.total(),
            oldest_ms=self._oldest_ms.get(name),
            priorities=dict(sorted(waiting.items())),
            messages=self._messages[name],
        )
