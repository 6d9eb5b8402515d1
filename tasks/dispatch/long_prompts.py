"""Claimed jobs that take long to encode, so that those behind them need not wait."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import get_args

from orcd.store.claim import Claim
from tasks.dispatch.delivery import Delivery
from tasks.dispatch.prompt_encoder import Lane
from tasks.supervised_thread import OnDeath, SupervisedThread

MAX_WAITING = 16
"""Jobs with long prompts that wait here at most, for each holds its text in memory. Whoever brings another one waits.
Of jobs with grammars, which are short, there may be as many as the worker takes."""


@dataclass(frozen=True, slots=True, eq=False)
class LongPrompt:
    """A job that was claimed, the delivery that it is for, and what of it takes long."""

    delivery: Delivery
    claim: Claim
    lane: Lane = "prompts"


class LongPrompts:
    """A thread for each lane, which calls ``encode`` with one job after the other, in the order in which they came.

    Jobs that have not had their turn when it is stopped go to ``give_back``.
    """

    def __init__(
        self, encode: Callable[[LongPrompt], None], give_back: Callable[[LongPrompt], None], on_death: OnDeath
    ) -> None:
        self._encode = encode
        self._give_back = give_back
        self._waiting: dict[Lane, deque[LongPrompt]] = {lane: deque() for lane in get_args(Lane)}
        self._changed = threading.Condition()
        self._threads = [SupervisedThread(f"long {lane}", partial(self._run, lane), on_death) for lane in self._waiting]

    @property
    def is_stopping(self) -> bool:
        """Whether what is being encoded will not be begun any more."""
        return self._threads[0].stopping.is_set()

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def put(self, prompt: LongPrompt) -> None:
        """Queue a job; waits while there are too many with long prompts."""
        waiting = self._waiting[prompt.lane]
        with self._changed:
            if prompt.lane == "prompts":
                self._changed.wait_for(lambda: len(waiting) < MAX_WAITING or self.is_stopping)
            waiting.append(prompt)
            self._changed.notify_all()

    def ask_to_stop(self) -> None:
        """Have whoever waits in `put` go on, and no other job have its turn."""
        for thread in self._threads:
            thread.stop()
        with self._changed:
            self._changed.notify_all()

    def stop(self, timeout_s: float) -> None:
        """End the threads, and give back the jobs that wait. Nobody may call `put` any more."""
        self.ask_to_stop()
        end = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        for waiting in self._waiting.values():
            while waiting:
                self._give_back(waiting.popleft())

    def _run(self, lane: Lane) -> None:
        waiting = self._waiting[lane]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: waiting or self.is_stopping)
                if self.is_stopping:
                    return
                prompt = waiting.popleft()
                self._changed.notify_all()
            self._encode(prompt)
