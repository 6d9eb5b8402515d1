"""A worker's jobs from the moment that Celery delivers them: claimed, run, and given back in order at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from orcd.errors import Cancelled
from orcd.store.enqueue import Message
from orcd.store.job_store import JobStore
from tasks.dispatch.claimer import Claimer
from tasks.dispatch.delivery import Delivery
from tasks.dispatch.job_runner import TICK_S, JobRunner, Release
from tasks.dispatch.maintenance import Termination
from tasks.dispatch.prompt_encoder import PromptEncoder
from tasks.observe.observer import Observer
from worker.settings import Settings

RELEASE_S = 5.0


class Dispatcher:
    """Claims jobs and runs them on one engine. For ``publish`` and ``on_lost`` see `JobRunner`."""

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        encoder: PromptEncoder,
        observer: Observer,
        publish: Callable[[Message], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._runner = JobRunner(settings, store, observer, publish, on_lost)
        self._claimer = Claimer(store, encoder, observer.model, settings.max_attempts, self._runner.put)

    @property
    def num_jobs(self) -> int:
        """Jobs in flight."""
        return self._runner.num_jobs

    @property
    def engine_pid(self) -> int | None:
        """Process id of the engine, None while there is none."""
        return self._runner.engine.process.pid

    def start(self) -> None:
        """Start to load the model; jobs are taken once `wait_until_loaded` has said so."""
        self._runner.start()

    def wait_until_loaded(self, timeout_s: float) -> bool:
        """Whether the engine is ready. Raises the error that its first start ended with."""
        engine = self._runner.engine
        if not engine.loaded.wait(timeout_s):
            return False
        if engine.limits is None:
            assert engine.fatal is not None, "it is set before the event"
            raise engine.fatal
        self._claimer.start(engine.limits)
        return True

    def accept(self, delivery: Delivery) -> None:
        """Take a job on; its ``done`` is called once with what became of it."""
        self._claimer.put(delivery)

    def cancel(self, job_id: str) -> None:
        """End a job that is in flight; others are ignored."""
        self._runner.put(Termination(job_id, Cancelled("revoked")))

    def drain(self, timeout_s: float) -> None:
        """Take no more jobs, wait for those in flight, and give back what is not finished in time."""
        self._claimer.stop()
        end = time.monotonic() + timeout_s
        while self._runner.num_jobs and self._runner.is_alive and time.monotonic() < end:
            time.sleep(TICK_S)
        if self._runner.is_alive:
            released = threading.Event()
            self._runner.put(Release(released))
            released.wait(RELEASE_S)

    def stop(self) -> None:
        """End the engine and the thread that runs the jobs."""
        self._runner.stop()
