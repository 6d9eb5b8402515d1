"""A worker's jobs from the moment that Celery delivers them: claimed, run, and given back in order at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from orcd.errors import Cancelled, OrcdError
from orcd.monitoring.worker_registry import Farewell
from orcd.store.enqueue import Message
from orcd.store.job_store import JobStore
from tasks.control_listener import ControlListener
from tasks.dispatch.active_job import ActiveJob, Termination
from tasks.dispatch.claimer import Claimer
from tasks.dispatch.delivery import Delivery
from tasks.dispatch.engine.engine_run import EngineRun
from tasks.dispatch.job_runner import TICK_S, JobRunner, Release
from tasks.dispatch.maintenance import Maintenance
from tasks.dispatch.prompt_encoder import PromptEncoder
from tasks.observe.observer import Observer
from tasks.supervised_thread import OnDeath
from worker.settings import Settings


class Dispatcher:
    """Claims jobs and runs them on one engine.

    ``publish`` sends the Celery message of a job that should be run by somebody. ``on_lost`` is called when the engine
    cannot be brought back, ``on_death`` when one of the threads here has died: this worker can then run no more jobs.
    ``leave`` is called when somebody tells this worker to leave, perhaps more than once.
    """

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        encoder: PromptEncoder,
        observer: Observer,
        publish: Callable[[Message], None],
        on_lost: Callable[[], None],
        leave: Callable[[Farewell], None],
        on_death: OnDeath,
    ) -> None:
        self._observer = observer
        self._encoder = encoder
        self._spare_percent = settings.spare_percent
        if encoder.template_problem is not None:
            observer.log.no_chat_template(encoder.template_problem)
        for warning in encoder.warnings:
            observer.log.odd_vocabulary(warning)
        self._runner = JobRunner(settings, store, observer, publish, on_lost, on_death)
        runner = self._runner
        self._claimer = Claimer(
            store,
            encoder,
            settings.max_attempts,
            settings.ageing_s,
            observer,
            runner.leases,
            runner.admission.begin,
            on_death,
        )
        self._maintenance = Maintenance(store, settings, observer, publish, runner, on_death)
        failed = partial(observer.log.retrying, "control")
        self._control = ControlListener(store, observer.worker_id, self._hear, leave, failed, on_death)

    @property
    def num_jobs(self) -> int:
        """Jobs in flight."""
        return len(self._runner.jobs())

    def running_jobs(self) -> dict[str, ActiveJob]:
        """Jobs in flight, by their ids."""
        return {job.job_id: job for job in self._runner.jobs()}

    @property
    def num_free(self) -> int:
        """Sequences that may be taken on: the engine runs so many, a few more wait for their turn, and some are held.

        What is beyond that waits in Redis, where any worker may take it. Negative while more are held.
        """
        most = -(-self._observer.num_runnable * (100 + self._spare_percent) // 100)
        return most - self._claimer.num_held

    @property
    def engine_pid(self) -> int | None:
        """Process id of the engine, None while there is none."""
        return self._runner.engine.process.pid

    def start(self, engine_run: EngineRun | None = None) -> None:
        """Start to load the model, unless ``engine_run`` does so already.

        Jobs are taken once `wait_until_loaded` has said so.
        """
        self._encoder.start()
        self._runner.start(engine_run)
        self._maintenance.start()
        self._control.start()

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

    def cancel(self, job_id: str, error: OrcdError | None = None) -> None:
        """End a job that was accepted, with ``error`` (default: that it was revoked); others are ignored."""
        error = error or Cancelled("revoked")
        if not self._claimer.cancel(job_id, error):
            self._runner.put(Termination(job_id, error))

    def drain(self, left_s: Callable[[], float]) -> None:
        """Take no more jobs, and wait for those in flight as long as ``left_s`` says that there is time."""
        self._claimer.ask_to_stop()
        while self.num_jobs and self._is_whole() and left_s() > 0:
            time.sleep(TICK_S)

    def give_back(self, timeout_s: float) -> None:
        """Take no more jobs, and give those in flight to other workers; where Redis is away, their leases run out."""
        end = time.monotonic() + timeout_s
        self._claimer.stop(timeout_s)
        released = threading.Event()
        self._runner.put(Release(released))
        while self._runner.is_alive and time.monotonic() < end and not released.wait(TICK_S):
            pass
        if not self._runner.is_alive:
            self._runner.abandon()

    def stop(self, timeout_s: float, engine_timeout_s: float) -> None:
        """End the engine, by killing it after ``engine_timeout_s``, and all threads but those that wait for Redis.

        What encodes prompts ends, too. The worker is off the list once its engine's memory is free.
        """
        end = time.monotonic() + timeout_s
        self._runner.stop(timeout_s, engine_timeout_s)
        self._encoder.close()
        self._control.stop(end - time.monotonic())
        self._maintenance.stop(end - time.monotonic())

    def _hear(self, job_id: str) -> None:
        """A client wants a job to be cancelled. If it is claimed and has not begun, its first append finds the wish."""
        for job in self._runner.jobs():
            if job.job_id == job_id:
                self._runner.put(Termination(job_id, Cancelled("cancelled"), job.claim.lease))

    def _is_whole(self) -> bool:
        """Whether jobs in flight can go on here."""
        return self._runner.is_alive and self._runner.engine.is_up and not self._observer.has_dead_thread
