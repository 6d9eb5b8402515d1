"""The Celery pool that hands jobs to the engine process.

A job waits inside the engine, not on a thread: `Pool.on_apply` only passes the job on. When its outcome is known,
Celery's ordinary tracer runs the task's body on one of a few finisher threads, with the outcome for its argument; so
results, retries, links, chords and acknowledgement work as in any other pool.

This leans on Celery's internals (``BasePool``, the arguments of ``on_apply`` and of the tracer): the version is pinned
for that reason, and `tests/tasks/celery_ext/test_pool.py` holds what is relied on.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from celery.concurrency.base import BasePool
from celery.exceptions import WorkerShutdown
from celery.worker.state import maybe_shutdown
from redis.backoff import NoBackoff
from redis.retry import Retry

from orcd.errors import OrcdError
from orcd.store.enqueue import Publisher
from orcd.store.job_store import JobStore
from orcd.store.redis_connection import connect
from tasks.celery_ext.in_flight_message import InFlightMessage
from tasks.celery_ext.revocation import ERRORS, end_arrived, end_revoked
from tasks.celery_ext.shutdown import Shutdown
from tasks.celery_ext.tasks import JobTask, trace
from tasks.dispatch.delivery import Answer
from tasks.dispatch.dispatcher import Dispatcher
from tasks.dispatch.prompt_encoder import PromptEncoder
from tasks.finisher import Finisher, Work
from tasks.interpreter import prepare_to_serve
from tasks.observe.health.health_server import HealthServer
from tasks.observe.observer import Observer
from tasks.startup_probe import setup_problems, wait_for_engine, wait_for_redis
from tasks.worker_id import worker_id
from worker.log import EventLog
from worker.settings import Settings

HAND_BACK_S = 3.0
"""At the end: so long to give jobs back, answer messages and end the engine."""


class Pool(BasePool):  # type: ignore[misc]
    """``celery worker --pool custom`` with one engine process behind it."""

    signal_safe = False

    _store: JobStore
    _publisher: Publisher

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings: Settings = (settings := self.app.settings)
        self._messages: dict[str, InFlightMessage] = {}
        self._lock = threading.Lock()
        log = EventLog(settings.log_format, worker_id(), model=settings.model_name, device=settings.device)
        self.observer = Observer(log, worker_id(), settings, self.app.tracer)
        self._health_server: HealthServer | None = None
        self.dispatcher: Dispatcher | None = None
        retrying = self.observer.log.retrying
        self._finisher = Finisher(self._prepare_finisher, self._store_results, retrying, self._thread_died)
        self._shutdown = Shutdown(settings.drain_timeout_s, self.observer.drains, self._leave, self._thread_died)
        self._is_leaving = False

    def on_start(self) -> None:
        """Load the model; Celery starts to consume when this returns."""
        settings = self._settings
        self.observer.log.startup(settings.device)
        self._shutdown.watch_signals()
        try:
            if settings.metrics_port:
                self._health_server = HealthServer(self.observer, settings, self._thread_died)
            self.dispatcher = self._connect(settings)
            self.dispatcher.start(self.app.engine_run)
            wait_for_engine(self.dispatcher.wait_until_loaded, settings.engine_start_timeout_s, maybe_shutdown)
            self._finisher.start()
            self._shutdown.start()
            prepare_to_serve()  # vocabulary and code are there
        except (OrcdError, OSError) as error:
            self.observer.log.error(error)
            self._close()
            raise WorkerShutdown(1) from None
        except SystemExit:  # Celery's WorkerShutdown or WorkerTerminate: it was told to leave
            self._close()
            raise

    @property
    def num_processes(self) -> int:
        """How many messages Celery may have in flight; other workers get them while the engine is away or unhealthy."""
        return int(self.limit) if self.observer.is_ready else 0

    @property
    def num_free(self) -> int:
        """How many more jobs may be taken: messages that wait for a finisher are not among those of the dispatcher."""
        return self.dispatcher.num_free - self._finisher.backlog if self.dispatcher is not None else 0

    def _connect(self, settings: Settings) -> Dispatcher:
        connection = connect(settings, Retry(NoBackoff(), 1))
        wait_for_redis(settings, self.observer.log.error, maybe_shutdown)
        for problem in setup_problems(connection):
            self.observer.log.redis_setup(problem)
        self._publisher = Publisher(settings)
        self._store = JobStore(
            connection,
            owner=self.observer.worker_id,
            model=self.observer.model,
            lease_ms=settings.lease_ms,
            ttl_s=settings.job_ttl_s,
            queue_limit_s=settings.queue_limit_s,
            key_prefix=settings.key_prefix,
        )
        encoder = PromptEncoder.load(settings)
        lost, leave, died = partial(self._shutdown.begin, 1), self._shutdown.begin_as_told, self._thread_died
        return Dispatcher(settings, self._store, encoder, self.observer, self._publisher.publish, lost, leave, died)

    def _thread_died(self, name: str, error: BaseException | None) -> None:
        self._shutdown.begin(exit_code=1)  # first: whoever reads the log may keep us waiting
        self.observer.thread_died(name, error)

    def _prepare_finisher(self) -> None:
        self.app.backend.is_waiting = lambda: self._finisher.is_waiting

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] = (),
        _kwargs: dict[str, Any] | None = None,
        callback: Callable[[Any], None] | None = None,
        accept_callback: Callable[[int, float], None] | None = None,
        **options: Any,
    ) -> InFlightMessage | None:
        """Take one message over from Celery's event loop; never blocks."""
        assert callback is not None, "Celery always wants to know the outcome"
        if accept_callback is not None:
            accept_callback(os.getpid(), time.monotonic())
        name, task_id, request, *body = args
        task = self.app.tasks[name]
        if not isinstance(task, JobTask):
            self._finisher.submit(lambda: callback(trace(target, args, time.monotonic(), self.observer.log.retrying)))
            return None
        message = InFlightMessage(task_id, task, target, request, [callback], self._terminate)
        message.read(body, (options.get("timeout"), options.get("soft_timeout")))
        return self._take(message)

    def _take(self, message: InFlightMessage, *, is_compared: bool = False) -> InFlightMessage:
        """Begin with a message, or adopt it; returns the one that Celery is to terminate."""
        with self._lock:
            first = self._messages.setdefault(message.task_id, message)
            is_unsure = not is_compared and first.lacks_request_of(message)
            # Delivered again while we work on it, as the broker connection was cut.
            is_adopted = first is not message and not is_unsure and first.adopt(message)
        if is_unsure:
            self._finisher.submit(partial(self._compare, message))
        elif is_adopted:
            if message not in first.followers:
                return first
            self._finisher.submit(lambda: self._store.arrive(message.arrivals()))
        elif message.error is not None:
            self.observer.log.refused(message.task_id, message.error)
            self._finisher.submit_item(message)
        elif message.is_doorbell and not message.ending:
            self._deliver(message)
        else:
            self._finisher.submit(partial(self._admit, message))
        return message

    def _deliver(self, message: InFlightMessage) -> None:
        """Have those jobs claimed that have no outcome yet."""
        assert self.dispatcher is not None, "Celery starts the pool before it consumes"
        deliveries = list(message.deliveries(self._done))
        message.num_waiting = len(deliveries)
        for delivery in deliveries:
            self.dispatcher.accept(delivery)

    def _compare(self, message: InFlightMessage) -> None:
        """Take a message of a known id, unless its request is another than the one in the job's record."""
        if any(self._store.arrive(message.arrivals())):
            self._admit(message)
        else:
            self._take(message, is_compared=True)

    def _admit(self, message: InFlightMessage) -> None:
        """End the jobs of a message that must not run, send those for another model on, have the others claimed."""
        end_revoked(self._store, self.app.backend, message)
        if misrouted := message.misrouted(self._settings.model_name):
            refusals = dict(zip(message.jobs, self._store.arrive(message.arrivals()), strict=True))
            self._publisher.announce([each for each in misrouted if refusals[each.job_id] is None])
        self._deliver(message)

    def submit(self, work: Callable[[JobStore, Any], object]) -> None:
        """Have something done that takes a while, with the store and the result backend. May be begun again."""
        self._finisher.submit(lambda: work(self._store, self.app.backend))

    def _terminate(self, message: InFlightMessage) -> None:
        """End the message's jobs, here at once, and in their records: so they stay ended should this worker die."""
        with self._lock:
            first = self._messages.get(message.task_id, message)
            for each in (message, first, *first.followers):
                each.ending = "terminated"
        self._finisher.submit(lambda: end_arrived(self._store, message.arrivals(), "terminated"))
        for job_id in message.jobs:
            if self.dispatcher is not None:
                self.dispatcher.cancel(job_id, ERRORS["terminated"])

    def _done(self, message: InFlightMessage, job_id: str, outcome: Answer) -> None:
        with self._lock:
            finished = message.has_outcome(job_id, outcome)
            if finished and message.unknown:  # a message of its id that comes from now on may have the request
                self._forget(message)
        if finished:
            self._finisher.submit_item(message)

    def _store_results(self, messages: Sequence[InFlightMessage]) -> list[Work]:
        """Store the results of messages whose jobs have ended, together; what is left is to answer them."""
        ended = [message for message in messages if self._has_ended(message)]
        retrying = self.observer.log.retrying
        with self.app.backend.together([each for message in ended for each in message.outcomes.values()]) as failures:
            for message in ended:
                message.store_results(self.app.backend, retrying)
        for failure in failures:
            retrying("finish", failure)
        return [partial(self._answer, message) for message in ended]

    def _has_ended(self, message: InFlightMessage) -> bool:
        """Whether the message is to be answered; if not, its jobs are claimed again, or left to other workers."""
        is_lost = message.is_lost
        if is_lost and self._is_leaving:
            return False  # it stays unacknowledged, so whoever takes the jobs over gets it
        with self._lock:
            goes_on = is_lost and message.looks_again
            message.looks_again = False
            if is_lost and not goes_on:
                self._forget(message)
        if goes_on:  # a job was put back, or forgotten: it is to be claimed again
            self._deliver(message)
        return not goes_on

    def _answer(self, message: InFlightMessage) -> None:
        """Answer a message whose results are stored. May be begun again where it stopped."""
        with self._lock:
            self._forget(message)
        message.call_back(self.observer.log.retrying)
        if not message.is_lost:
            result_key = self.app.backend.get_key_for_task(message.task_id) if message.has_result else ""
            self._store.answered(message.records, message.jobs, result_key)
        while message.followers:
            self._take(message.followers.pop(0))

    def _forget(self, message: InFlightMessage) -> None:
        """What comes under its id from now on is another message."""
        if self._messages.get(message.task_id) is message:
            del self._messages[message.task_id]

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Nothing: a message ends its own jobs."""

    def on_stop(self) -> None:
        """Warm shutdown: finish what can be finished in time, hand the rest to other workers, stop the engine."""
        if self._shutdown.is_in_handler:
            return  # this, or `on_terminate`, is called again
        self._shutdown.begin()  # where nobody has: Celery has failed, or got its own command to shut down
        self._shutdown.wait()

    def on_terminate(self) -> None:
        """Cold shutdown: hand everything to other workers at once."""
        self._shutdown.begin(cold=True)
        self._shutdown.wait()

    def _leave(self) -> None:
        assert self.dispatcher is not None, "who leaves while it starts closes"
        self._is_leaving = True
        self.observer.log.draining(self.dispatcher.num_jobs, self._shutdown.drain_left_s())
        self.dispatcher.drain(self._shutdown.drain_left_s)
        self._close()

    def _close(self) -> None:
        end = time.monotonic() + HAND_BACK_S
        if self.dispatcher is not None:
            self.dispatcher.give_back(end - time.monotonic())
        self._finisher.stop(end - time.monotonic())
        if self.dispatcher is not None:
            left_s = end - time.monotonic()
            self.dispatcher.stop(left_s, engine_timeout_s=0.0 if self._shutdown.is_cold else left_s)
        if self._health_server is not None:
            self._health_server.close()
        self.observer.close()

    def _get_info(self) -> dict[str, Any]:
        engine = {"pid": self.dispatcher.engine_pid, "jobs": self.dispatcher.num_jobs} if self.dispatcher else {}
        ours = {"max-concurrency": self.limit, "processes": [os.getpid()], "engine": engine}
        return {**super()._get_info(), "model": self._settings.model_name, "device": self._settings.device, **ours}
