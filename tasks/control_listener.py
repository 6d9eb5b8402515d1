"""What clients tell all workers at once: which job is to be cancelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import redis

from orcd.store import schema
from orcd.store.backoff import FIRST_RETRY_S, MAX_RETRY_S, Backoff
from orcd.store.job_store import JobStore
from tasks.supervised_thread import OnDeath, SupervisedThread

LISTEN_S = 0.1
"""So often it looks whether it is to stop."""


class _Cancellation(msgspec.Struct):
    """What is published on the control channel."""

    cancel: str


class ControlListener:
    """A thread that listens on the control channel, and for nothing else: whoever cancels a job waits for its slot.

    ``cancel`` is told the id of each job that shall end, whoever has it. A message that is missed does no harm: the
    job's record has the wish too, and the next append or renewal finds it. ``failed`` is told when Redis does not
    answer.
    """

    def __init__(
        self,
        store: JobStore,
        cancel: Callable[[str], None],
        failed: Callable[[redis.RedisError], None],
        on_death: OnDeath,
    ) -> None:
        self._store = store
        self._cancel = cancel
        self._failed = failed
        self._thread = SupervisedThread("control listener", self._run, on_death)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._thread.stop()
        self._thread.join()

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
            job_id = msgspec.json.decode(data, type=_Cancellation).cancel
        except (ValueError, RecursionError):  # not from us
            return
        self._cancel(job_id)
