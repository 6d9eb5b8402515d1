"""What clients tell all workers at once: which job is to be cancelled, and which worker is to leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import redis

from orcd.monitoring.worker_registry import Farewell
from orcd.store import schema
from orcd.store.backoff import FIRST_RETRY_S, MAX_RETRY_S, Backoff
from orcd.store.job_store import JobStore
from tasks.supervised_thread import OnDeath, SupervisedThread

LISTEN_S = 0.1
"""So often it looks whether it is to stop."""


class _Control(msgspec.Struct):
    """What is published on the control channel: the id of a job, or the name of a worker."""

    cancel: str = ""
    drain: str = ""
    stop: str = ""


_control = msgspec.json.Decoder(_Control)


class ControlListener:
    """A thread that listens on the control channel, and for nothing else: whoever cancels a job waits for its slot.

    ``cancel`` is told the id of each job that shall end, whoever has it, and ``leave`` that the worker of this name
    shall, and how. A message that is missed does no harm: a job's record has the wish too, and the next append or
    renewal finds it; a worker is told until it has left. ``failed`` is told when Redis does not answer.
    """

    def __init__(
        self,
        store: JobStore,
        worker_id: str,
        cancel: Callable[[str], None],
        leave: Callable[[Farewell], None],
        failed: Callable[[redis.RedisError], None],
        on_death: OnDeath,
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._cancel = cancel
        self._leave = leave
        self._failed = failed
        self._thread = SupervisedThread("control listener", self._run, on_death)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End it. It is left where Redis does not answer in time."""
        self._thread.stop()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        stopping, backoff = self._thread.stopping, Backoff(FIRST_RETRY_S, MAX_RETRY_S)
        while not stopping.is_set():
            try:
                self._listen(backoff)
            except redis.RedisError as error:
                self._failed(error)
                stopping.wait(backoff.failed(error))

    def _listen(self, backoff: Backoff) -> None:
        """Hear what is published until the thread is to stop."""
        connection: Any = self._store.redis  # redis-py does not type pubsub()
        with connection.pubsub(ignore_subscribe_messages=True) as channel:
            channel.subscribe(self._store.key_prefix + schema.CONTROL)
            while not self._thread.stopping.is_set():
                message = channel.get_message(timeout=LISTEN_S)
                backoff.succeeded()
                if message is not None:
                    self._hear(message["data"])

    def _hear(self, data: bytes) -> None:
        try:
            control = _control.decode(data)
        except (ValueError, RecursionError):  # not from us
            return
        if control.cancel:
            self._cancel(control.cancel)
        if self._worker_id in (control.drain, control.stop):
            self._leave("stop" if control.stop else "drain")
