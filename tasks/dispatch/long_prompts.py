"""Claimed jobs whose prompts take long to encode, so that those behind them need not wait."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from orcd.store.claim import Claim
from tasks.dispatch.delivery import Delivery
from tasks.supervised_thread import OnDeath, SupervisedThread

MAX_WAITING = 16
"""Jobs that wait here at most, for each holds its text in memory. Whoever brings another one waits."""


@dataclass(frozen=True, slots=True, eq=False)
class LongPrompt:
    """A job that was claimed, and the delivery that it is for."""

    delivery: Delivery
    claim: Claim


class LongPrompts:
    """A thread that calls ``encode`` with one job after the other, in the order in which they came.

    Jobs that have not had their turn when it is stopped go to ``give_back``.
    """

    def __init__(
        self, encode: Callable[[LongPrompt], None], give_back: Callable[[LongPrompt], None], on_death: OnDeath
    ) -> None:
        self._encode = encode
        self._give_back = give_back
        self._waiting: deque[LongPrompt] = deque()
        self._changed = threading.Condition()
        self._thread = SupervisedThread("long prompts", self._run, on_death)

    @property
    def is_stopping(self) -> bool:
        """Whether what is being encoded will not be begun any more."""
        return self._thread.stopping.is_set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, prompt: LongPrompt) -> None:
        """Queue a job; waits while there are too many."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < MAX_WAITING or self.is_stopping)
            self._waiting.append(prompt)
            self._changed.notify_all()

    def ask_to_stop(self) -> None:
        """Have whoever waits in `put` go on, and no other job have its turn."""
        self._thread.stop()
        with self._changed:
            self._changed.notify_all()

    def stop(self, timeout_s: float) -> None:
        """End the thread, and give back the jobs that wait. Nobody may call `put` any more."""
        self.ask_to_stop()
        self._thread.join(timeout_s)
        while self._waiting:
            self._give_back(self._waiting.popleft())

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self.is_stopping)
                if self.is_stopping:
                    return
                prompt = self._waiting.popleft()
                self._changed.notify_all()
            self._encode(prompt)
