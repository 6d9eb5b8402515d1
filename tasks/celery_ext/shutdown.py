"""A worker's shutdown: who may ask for it, how long the jobs in flight then have, and when it is over at the latest."""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from celery import signals
from celery.worker import state

from orcd.cli.command_line import ignore_signals_at_exit
from orcd.monitoring.worker_registry import Farewell
from tasks.supervised_thread import OnDeath, SupervisedThread

TICK_S = 0.1
GIVE_UP_S = 4.0
CLOSE_S = 2.0
"""How long Celery then has to take leave of Redis, before the process ends without that."""


class Shutdown:
    """Has the worker leave when it is asked to, whatever Celery's event loop waits for.

    ``begun`` is called when somebody asks, perhaps within a signal handler: it may only set flags. A thread then calls
    ``leave``, which gives up all jobs and may take `drain_left_s` for that, while Celery's event loop sees
    ``celery.worker.state`` and ends too. Where either takes longer, as it waits for a Redis that does not answer at
    each of a dozen commands, the process exits all the same: what it still holds, others get when its leases run out.
    """

    def __init__(
        self, drain_timeout_s: float, begun: Callable[[], None], leave: Callable[[], None], on_death: OnDeath
    ) -> None:
        self._drain_timeout_s = drain_timeout_s
        self._begun = begun
        self._leave = leave
        self._drain_end = math.inf
        self._asked: SimpleQueue[None] = SimpleQueue()  # whose put() may be called within a signal handler
        self._left = threading.Event()
        self._thread = SupervisedThread("shutdown", self._run, on_death)
        self._exit_thread = SupervisedThread("exit", self._exit_in_time, on_death)

    def watch_signals(self) -> None:
        """Notice from now on what Celery's signal handlers are told. Only the main thread may call this."""
        signals.worker_shutting_down.connect(self._ask)
        handle: Any = signal.getsignal(signal.SIGINT)

        def interrupted(*args: Any) -> None:
            # Celery exits with 1 after Ctrl-C, though all is in order. It handles a second one by another handler.
            exit_code = state.should_stop
            handle(*args)
            state.should_stop = exit_code or os.EX_OK

        signal.signal(signal.SIGINT, interrupted)
        restart: Any = signal.getsignal(signal.SIGHUP)

        def restarted(*args: Any) -> None:
            # Celery says with which arguments, and the password of Redis may be among them.
            arguments, sys.argv = sys.argv, sys.argv[:1]
            restart(*args)
            sys.argv = arguments

        if callable(restart):
            signal.signal(signal.SIGHUP, restarted)
        # Where its threads are, a worker says on SIGUSR1. Celery would print their local variables, prompts too.
        faulthandler.register(signal.SIGUSR1)
        ignore_signals_at_exit()

    def start(self) -> None:
        """Have `leave` called when somebody asks, or has asked; before that, whoever starts the worker ends it."""
        self._thread.start()

    def begin(self, exit_code: int = os.EX_OK, *, cold: bool = False) -> None:
        """Have the worker exit with that code; with ``cold`` the jobs in flight have no time. From any thread."""
        if cold:
            state.should_terminate = exit_code
        else:
            state.should_stop = state.should_stop or exit_code
        self._ask()

    def begin_as_told(self, farewell: Farewell) -> None:
        """The same for who was told by a command: one to stop leaves the jobs in flight no time."""
        self.begin(cold=farewell == "stop")

    def wait(self) -> None:
        """Return when all jobs are given up, or Redis has not answered in time."""
        while self.drain_left_s() > 0 and not self._left.wait(TICK_S):
            pass
        self._left.wait(GIVE_UP_S)

    @property
    def is_cold(self) -> bool:
        """Whether the jobs in flight have no time at all."""
        return state.should_terminate is not None and state.should_terminate is not False  # an exit code may be 0

    @property
    def is_in_handler(self) -> bool:
        """Whether Celery is in its signal handler of a cold shutdown; the exit code comes at its end."""
        return state.should_terminate is True

    def drain_left_s(self) -> float:
        """How many seconds the jobs in flight still have; 0 or less: none."""
        return 0.0 if self.is_cold else self._drain_end - time.monotonic()

    def _ask(self, **_: Any) -> None:
        self._drain_end = min(self._drain_end, time.monotonic() + self._drain_timeout_s)
        self._begun()
        self._asked.put(None)

    def _run(self) -> None:
        self._asked.get()
        self._exit_thread.start()
        try:
            self._leave()
        finally:
            self._thread.stop()
            self._left.set()

    def _exit_in_time(self) -> None:
        self.wait()  # also for a `leave` that does not come to its end, as nobody reads what it logs
        time.sleep(CLOSE_S)
        os._exit(state.should_stop or os.EX_OK)
