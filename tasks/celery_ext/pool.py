"""The Celery pool that hands jobs to the engine process.

A job waits inside the engine, not on a thread: `Pool.on_apply` only passes the job on. When its outcome is known,
Celery's ordinary tracer runs the task's body on one of a few finisher threads, with the outcome for its argument; so
results, retries, links, chords and acknowledgement work as in any other pool.

This leans on Celery's internals (``BasePool``, the arguments of ``on_apply`` and of the tracer): the version is pinned
for that reason, and `tests/tasks/celery_ext/test_pool.py` holds what is relied on.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import redis
from celery.concurrency.base import BasePool, apply_target
from celery.exceptions import WorkerShutdown
from celery.worker import state as celery_state
from kombu.serialization import loads
from redis.backoff import NoBackoff
from redis.retry import Retry

from orcd.errors import EngineLost, OrcdError
from orcd.store.enqueue import Publisher
from orcd.store.job_store import JobStore
from orcd.store.redis_connection import connect, redis_errors
from tasks.app import worker_id
from tasks.dispatch.delivery import Delivery, Outcome
from tasks.dispatch.dispatcher import Dispatcher
from tasks.dispatch.prompt_encoder import PromptEncoder
from tasks.observe.health_server import HealthServer
from tasks.observe.observer import Observer
from worker.log import EventLog
from worker.settings import Settings

NUM_FINISHERS = 2
"""No stream waits for what they do, and each takes its share of the interpreter from the threads that start jobs."""
DRAIN_S = 5.0
POLL_S = 0.1


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Message:
    """One Celery message in flight; Celery keeps a weak reference to it for ``revoke(terminate=True)``.

    ``target`` is Celery's tracer, ``header`` the first of its arguments, and ``embed`` what follows the task's own
    arguments in the message's body: links, chain and chord.
    """

    task_id: str
    target: Callable[..., Any]
    header: tuple[Any, ...]
    embed: dict[str, Any]
    callbacks: list[Callable[[Any], None]]
    cancel: Callable[[str], None]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    accepted_at: float = field(default_factory=time.monotonic)
    num_waiting: int = 0
    error: OrcdError | None = None

    def terminate(self, _signal: int | None = None) -> None:
        """End the jobs; the message is then finished like any other."""
        for job_id in self.outcomes:
            self.cancel(job_id)


class Pool(BasePool):  # type: ignore[misc]
    """``celery worker --pool custom`` with one engine process behind it."""

    body_can_be_buffer = False
    signal_safe = False
    task_join_will_block = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings: Settings = self.app.settings
        self._messages: dict[str, _Message] = {}
        self._lock = threading.Lock()
        self._settings = settings
        log = EventLog(settings.log_format, worker_id(), model=settings.model_name, device=settings.device)
        self._observer = Observer(log, worker_id(), settings.model_name)
        self._health_server: HealthServer | None = None
        self._dispatcher: Dispatcher | None = None
        self._finishers = ThreadPoolExecutor(NUM_FINISHERS, thread_name_prefix="finisher")

    def on_start(self) -> None:
        """Load the model; Celery starts to consume when this returns."""
        settings = self._settings
        self._observer.log.startup(settings.device)
        try:
            if settings.metrics_port:
                self._health_server = HealthServer(self._observer, settings.metrics_port)
            self._dispatcher = self._connect(settings)
            self._dispatcher.start()
            self._wait_until_loaded(self._dispatcher)
            # Vocabulary and code stay. Under load the garbage collector would look through them about once a second:
            # 50 ms in which all threads stand still.
            gc.freeze()
        except OrcdError as error:
            self._observer.log.error(error)
            self._close()
            raise WorkerShutdown(1) from None
        except WorkerShutdown:
            self._close()
            raise

    @property
    def num_processes(self) -> int:
        """How many messages Celery may have in flight: none while the engine is away or unhealthy.

        So other workers get them. Celery asks before every message (``worker_disable_prefetch``).
        """
        limit: int = self.limit
        return limit if self._observer.is_ready else 0

    def _connect(self, settings: Settings) -> Dispatcher:
        connection: Any = connect(redis.Redis.from_url, settings, Retry(NoBackoff(), 1))
        with redis_errors(settings):
            connection.ping()
        store = JobStore(
            connection,
            owner=self._observer.worker_id,
            model=self._observer.model,
            lease_ms=settings.lease_ms,
            ttl_s=settings.job_ttl_s,
        )
        return Dispatcher(
            settings,
            store,
            PromptEncoder.load(settings),
            self._observer,
            Publisher(settings).publish,
            self._engine_lost,
        )

    def _wait_until_loaded(self, dispatcher: Dispatcher) -> None:
        end = time.monotonic() + self._settings.engine_start_timeout_s
        while not dispatcher.wait_until_loaded(POLL_S):
            celery_state.maybe_shutdown()
            if time.monotonic() > end:
                raise EngineLost(f"the engine was not ready after {self._settings.engine_start_timeout_s} s")

    def _engine_lost(self) -> None:
        # Celery's event loop looks at this flag; its shutdown drains, so other workers take the jobs over.
        celery_state.should_stop = 1

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] = (),
        _kwargs: dict[str, Any] | None = None,
        callback: Callable[[Any], None] | None = None,
        accept_callback: Callable[[int, float], None] | None = None,
        **_: Any,
    ) -> _Message | None:
        """Take one message over from Celery's event loop; never blocks."""
        assert callback is not None, "Celery always wants to know the outcome"
        if accept_callback is not None:
            accept_callback(os.getpid(), time.monotonic())
        name, task_id, request, body, content_type, content_encoding = args
        task = self.app.tasks[name]
        if not hasattr(task, "deliveries"):
            self._finishers.submit(apply_target, target, args, {}, callback)
            return None
        arguments, keywords, embed = loads(body, content_type, content_encoding) if content_type else body
        with self._lock:
            message = self._messages.get(task_id)
            if message is not None:  # delivered again while we work on it (the broker connection was cut): adopt it
                message.callbacks.append(callback)
                return message
            message = _Message(task_id, target, (name, task_id, request), embed, [callback], self._cancel)
            self._messages[task_id] = message
        try:
            deliveries = task.deliveries(task_id, arguments, keywords)
        except OrcdError as error:
            message.error = error
            self._finishers.submit(self._finish, message)
            return message
        message.outcomes = dict.fromkeys(deliveries)
        message.num_waiting = len(deliveries)
        assert self._dispatcher is not None, "Celery starts the pool before it consumes"
        for job_id, inline in deliveries.items():
            done = partial(self._done, message, job_id)
            # A second message of the same id has nothing to add; one of another id is waited for by somebody.
            self._dispatcher.accept(Delivery(job_id, inline, done, waits=job_id != task_id))
        return message

    def _cancel(self, job_id: str) -> None:
        if self._dispatcher is not None:
            self._dispatcher.cancel(job_id)

    def _done(self, message: _Message, job_id: str, outcome: Outcome) -> None:
        with self._lock:
            message.outcomes[job_id] = outcome
            message.num_waiting -= 1
            finished = message.num_waiting == 0
        if finished:
            self._finishers.submit(self._finish, message)

    def _finish(self, message: _Message) -> None:
        # The body of a message that was decoded has no content type; in place of the task's arguments is the outcome.
        body: Any = (message.error or message.outcomes,), {}, message.embed
        try:
            apply_target(message.target, (*message.header, body, None, None), {}, partial(self._answer, message))
        except Exception as error:  # Redis went away while the result was stored: the message is delivered again
            self._observer.log.trouble("finish", error)

    def _answer(self, message: _Message, answer: Any) -> None:
        with self._lock:
            del self._messages[message.task_id]
        if isinstance(answer, tuple):  # the tracer timed only how long the outcome took to pick up
            failed, value, _ = answer
            answer = (failed, value, time.monotonic() - message.accepted_at)
        for callback in message.callbacks:
            callback(answer)

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Nothing: Celery also calls the message's own ``terminate``, which goes by job and not by process."""

    def on_stop(self) -> None:
        """Warm shutdown: finish what can be finished soon, hand the rest to other workers, stop the engine."""
        if self._dispatcher is not None:
            self._dispatcher.drain(DRAIN_S)
        self._close()

    def on_terminate(self) -> None:
        """Cold shutdown: hand everything to other workers at once."""
        if self._dispatcher is not None:
            self._dispatcher.drain(0.0)
        self._close()

    def _close(self) -> None:
        self._finishers.shutdown(wait=True)
        if self._dispatcher is not None:
            self._dispatcher.stop()
        if self._health_server is not None:
            self._health_server.close()
        self._observer.log.shutdown()

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        dispatcher = self._dispatcher
        engine = {"pid": dispatcher.engine_pid, "jobs": dispatcher.num_jobs} if dispatcher else {}
        return {**info, "max-concurrency": self.limit, "processes": [os.getpid()], "engine": engine}
