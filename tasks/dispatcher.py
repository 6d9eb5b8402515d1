"""A worker's jobs from the moment that Celery hands them over: intake, desk, and an orderly end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tasks.desk import TICK_S, Desk, Job, Release
from tasks.generation import Generation
from tasks.intake import Delivery, Done, Intake
from tasks.job import JobStore, Message
from tasks.observe import Observer
from tasks.prompt import PromptEncoder
from tasks.upkeep import Verdict
from worker.errors import Cancelled
from worker.settings import Settings

RELEASE_S = 5.0


class Dispatcher:
    """Claims jobs and runs them on one engine. For ``publish`` and ``on_lost`` see `Desk`."""

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        encoder: PromptEncoder,
        observer: Observer,
        publish: Callable[[Message], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._desk = Desk(settings, store, observer, publish, on_lost)
        self._intake = Intake(store, encoder, observer.model, settings.max_attempts, self._begin)

    @property
    def num_jobs(self) -> int:
        """Jobs in hand."""
        return self._desk.num_jobs

    @property
    def engine_pid(self) -> int | None:
        """Process id of the engine, None while there is none."""
        return self._desk.engine.pid

    def start(self) -> None:
        """Start to load the model; jobs are taken once `wait_until_loaded` has said so."""
        self._desk.start()

    def wait_until_loaded(self, timeout_s: float) -> bool:
        """Whether the engine is ready. Raises the error that its first start ended with."""
        if not self._desk.loaded.wait(timeout_s):
            return False
        if self._desk.limits is None:
            assert self._desk.fatal is not None, "it is set before the event"
            raise self._desk.fatal
        self._intake.start(self._desk.limits)
        return True

    def accept(self, delivery: Delivery) -> None:
        """Take a job on; its ``done`` is called once with what became of it."""
        self._intake.put(delivery)

    def cancel(self, job_id: str) -> None:
        """End a job that is in hand; others are ignored."""
        self._desk.put(Verdict(job_id, Cancelled("revoked")))

    def drain(self, timeout_s: float) -> None:
        """Take no more jobs, wait for those in hand, and give back what is not finished in time."""
        self._intake.stop()
        end = time.monotonic() + timeout_s
        while self._desk.num_jobs and self._desk.is_alive and time.monotonic() < end:
            time.sleep(TICK_S)
        if self._desk.is_alive:
            released = threading.Event()
            self._desk.put(Release(released))
            released.wait(RELEASE_S)

    def stop(self) -> None:
        """End engine and desk."""
        self._desk.stop()

    def _begin(self, generation: Generation, done: Done) -> None:
        self._desk.put(Job(generation, done))
