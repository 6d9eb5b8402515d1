"""The life of a worker's engine: started, found to hang, restarted after it died, given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from orcd.errors import BY_CODE, EngineLost, ModelLoadFailed, OrcdError
from tasks.dispatch.engine.engine_process import EngineExit, EngineProcess
from tasks.observe.observer import Observer
from tasks.supervised_thread import OnDeath
from worker import contract
from worker.settings import Settings

MAX_FAILED_STARTS = 3
IDLE_SILENCE_S = 15
"""An idle engine sends its figures every five seconds; one that missed two of them hangs."""


class EngineSupervisor:
    """Keeps one engine process alive; ``put`` gets its frames and an `EngineExit` each time it has ended.

    ``loaded`` is set when the first start has ended. If it ended well, ``limits`` holds what the engine can do, if not,
    ``fatal`` why. ``on_lost`` is called when the engine cannot be brought back, ``on_death`` when one of the threads
    that speak to it has ended.

    What is public may be read from any thread; the methods that act on frames belong to the job runner's.
    """

    def __init__(
        self,
        settings: Settings,
        observer: Observer,
        put: Callable[[contract.Event | EngineExit], None],
        on_lost: Callable[[], None],
        on_death: OnDeath,
        stopping: threading.Event,
    ) -> None:
        """Once ``stopping`` is set an engine that ends is not restarted."""
        self.process = EngineProcess(settings, self._hear, put, on_death)
        self.loaded = threading.Event()
        self.limits: contract.Ready | None = None
        self.fatal: OrcdError | None = None
        self.is_up = False
        self._settings = settings
        self._observer = observer
        self._put = put
        self._on_lost = on_lost
        self._stopping = stopping
        self._failed_starts = 0
        self._restart_at: float | None = None
        self._is_killed = False

    def _hear(self, event: contract.Event) -> None:
        """Pass a frame on; on the reader's thread, as soon as it has come."""
        if isinstance(event, contract.Outputs):
            self._observer.metrics.tokens_came(event.outputs, time.monotonic())
        self._put(event)

    def ready(self, ready: contract.Ready) -> None:
        """The engine takes requests.

        One that came back with another fingerprint ends the worker: its jobs were begun, and its prompts are encoded,
        by another model file.
        """
        if self.limits is not None and ready.fingerprint != self.limits.fingerprint:
            self._observer.log.error(ModelLoadFailed(f"{self._settings.model}: has changed since the worker started"))
            self._on_lost()
            return
        self.is_up, self._failed_starts, self.limits = True, 0, ready
        self._observer.ready(ready)
        self.loaded.set()

    def failed(self, fatal: contract.Fatal) -> None:
        """The engine has said why it is about to exit."""
        self.fatal = BY_CODE.get(fatal.code, OrcdError)(fatal.message)
        if self.limits is not None:  # the first start's error is told by whoever waits for ``loaded``
            self._observer.log.error(self.fatal)

    def exited(self, exit: EngineExit) -> bool:
        """The process has ended: start the next, if that may help. True if it was at work, and not loading."""
        was_up, self.is_up, self._is_killed = self.is_up, False, False
        if self._stopping.is_set():
            return False
        if self.limits is None:
            self.fatal = self.fatal or EngineLost(f"the engine ended with {exit.code} while it loaded the model")
            self.loaded.set()
            return False
        self._observer.engine_exited(exit.code)
        self._failed_starts += 1
        if self._failed_starts > MAX_FAILED_STARTS:
            self._on_lost()
            return False
        pause_s = 2.0 ** (self._failed_starts - 2) if self._failed_starts > 1 else 0.0
        self._restart_at = time.monotonic() + pause_s
        return was_up

    def supervise(self, *, has_jobs: bool) -> None:
        """Start the next run when its time has come, and end one that hangs; called a few times a second."""
        now = time.monotonic()
        if self._restart_at is not None:
            if now >= self._restart_at:
                self._restart_at = None
                self.process.restart()
        elif not self._is_killed and self._hangs(now, has_jobs):
            self._is_killed = True
            self._observer.log.engine_hung(now - self.process.last_heard)
            self.process.kill()

    def _hangs(self, now: float, has_jobs: bool) -> bool:
        if self.is_up:
            step_s = self._settings.engine_step_timeout_s
            return now - self.process.last_heard > (step_s if has_jobs else max(step_s, IDLE_SILENCE_S))
        start_s = self._settings.engine_start_timeout_s
        is_late = self.process.pid is not None and now - self.process.started_at > start_s
        if is_late and self.limits is None:
            self.fatal = EngineLost(f"the engine was not ready after {start_s} s")
        return is_late
