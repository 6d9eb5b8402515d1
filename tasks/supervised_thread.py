"""A thread that its process depends on."""

from __future__ import annotations

import threading
from collections.abc import Callable

from worker.text import threads

OnDeath = Callable[[str, BaseException | None], None]
"""Called with a thread's name and the exception that ended it, None if it returned."""


class SupervisedThread:
    """A thread whose end is noticed.

    ``run`` goes on until ``stopping`` is set, which its owner does by `stop`. If it returns earlier, or raises, the
    thread calls ``on_death`` as the last thing it does.
    """

    def __init__(self, name: str, run: Callable[[], None], on_death: OnDeath) -> None:
        self.stopping = threading.Event()
        self._run = run
        self._on_death = on_death
        self._has_run = False
        self._thread = threading.Thread(target=self._supervise, name=name, daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether it was started and ``run`` goes on; where that has ended, ``on_death`` may still be at work."""
        return self._thread.is_alive() and not self._has_run

    def start(self) -> None:
        """Start the thread; once only. Raises OSError where the system allows no more threads."""
        threads.start(self._thread)

    def stop(self) -> None:
        """Say that ``run`` shall return. Where it waits for something else, the owner then wakes it."""
        self.stopping.set()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the thread has ended; does not wait for one that was never started, nor for itself."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(None if timeout_s is None else min(max(0.0, timeout_s), threading.TIMEOUT_MAX))

    def _supervise(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self._has_run = True
            self._on_death(self._thread.name, error)
        else:
            self._has_run = True
            if not self.stopping.is_set():
                self._on_death(self._thread.name, None)
