"""The life of a worker's engine: started, found to hang, restarted after it died, given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from orcd.errors import BY_CODE, EngineLost, OrcdError, Poisoned
from tasks.dispatch.active_job import ActiveJob
from tasks.dispatch.engine_process import EngineProcess
from tasks.observe.observer import Observer
from worker import contract
from worker.settings import Settings

MAX_FAILED_STARTS = 3


@dataclass(frozen=True, slots=True)
class EngineExit:
    """The engine process has ended."""

    code: int


class EngineSupervisor:
    """Keeps one engine process alive; ``put`` gets its frames and an `EngineExit` each time it has ended.

    ``loaded`` is set when the first start has ended. If it ended well, ``limits`` holds what the engine can do, if not,
    ``fatal`` why. ``on_lost`` is called when the engine cannot be brought back.

    What is public may be read from any thread; the methods that act on frames belong to the job runner's.
    """

    def __init__(
        self,
        settings: Settings,
        observer: Observer,
        put: Callable[[contract.Event | EngineExit], None],
        on_lost: Callable[[], None],
        stopping: threading.Event,
    ) -> None:
        """Once ``stopping`` is set an engine that ends is not restarted."""
        self.process = EngineProcess(settings, put, lambda code: put(EngineExit(code)))
        self.loaded = threading.Event()
        self.limits: contract.Ready | None = None
        self.fatal: OrcdError | None = None
        self.is_up = False
        self._settings = settings
        self._observer = observer
        self._on_lost = on_lost
        self._stopping = stopping
        self._failed_starts = 0

    def ready(self, ready: contract.Ready) -> None:
        """The engine takes requests."""
        self.is_up, self._failed_starts, self.limits = True, 0, ready
        self._observer.ready(ready)
        self.loaded.set()

    def failed(self, fatal: contract.Fatal) -> None:
        """The engine has said why it is about to exit."""
        self.fatal = BY_CODE.get(fatal.code, OrcdError)(fatal.message)
        if self.limits is not None:  # the first start's error is told by whoever waits for ``loaded``
            self._observer.log.error(self.fatal)

    def exited(self, code: int, jobs: Collection[ActiveJob]) -> None:
        """The process has ended under these jobs: start the next, if that may help.

        Jobs that were there too often when it died are failed.
        """
        self.is_up = False
        if self._stopping.is_set():
            return
        if self.limits is None:
            self.fatal = self.fatal or EngineLost(f"the engine ended with {code} while it loaded the model")
            self.loaded.set()
            return
        self._observer.engine_exited(code)
        self._failed_starts += 1
        if self._failed_starts > MAX_FAILED_STARTS:
            self._on_lost()
            return
        for job in jobs:
            job.num_engine_losses += 1
            if job.claim.attempt + job.num_engine_losses > self._settings.max_attempts:
                job.fail(Poisoned("given up: the engine died too many times while it ran this job"))
        if self._failed_starts > 1:
            self._stopping.wait(2.0 ** (self._failed_starts - 2))
        self.process.restart()

    def kill_if_hung(self) -> None:
        """End an engine that has work and has said nothing for too long; it is then restarted."""
        silent_s = time.monotonic() - self.process.last_heard
        if self.is_up and silent_s > self._settings.engine_step_timeout_s:
            self._observer.log.engine_hung(silent_s)
            self.process.kill()
