"""Celery's consumer, which takes messages, sends task events and acknowledgements in batches, and outlives Redis."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import celery.worker.consumer
from celery.utils.log import get_logger
from celery.worker import state
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from orcd.cli.command_line import report_error
from orcd.errors import InvalidRequest
from orcd.store.backoff import Backoff
from tasks.celery_ext.message import Unreadable, read_task
from tasks.celery_ext.pool import Pool
from tasks.celery_ext.request import Request
from tasks.celery_ext.revocation import refuse_task

FLUSH_S = 0.1
PROGRESS_S = 5.0
"""So often Flower is told how far a running task is."""
PROGRESS_PARTS = 10
"""In so many parts, so that the event loop of a worker with hundreds of tasks is not kept from its work."""
CLOSE_S = 5.0
RECONNECT_S = (0.1, 1.0)
"""Time between two attempts to reach Redis: at first, and at most."""
STABLE_S = 5.0
"""Who has consumed for so long begins with short pauses again."""

CANNOT_RUN = {"celery.map", "celery.starmap", "celery.chord_unlock"}
"""Tasks of Celery's own that call ours as functions, or look for results where ours are not."""

logger = get_logger(__name__)


class Consumer(celery.worker.consumer.Consumer):  # type: ignore[misc]
    """Publishes what has happened to tasks ten times a second, and sooner if it is much.

    Celery does so in every turn of the event loop: at 150 jobs a second that was a tenth of its process's time.
    Acknowledgements that no message has taken along go then too.

    While Redis is away or refuses commands it connects again and again, and says so once. Messages that nobody can
    read go to the dead letters, where Celery drops them or ends.
    """

    connection: Any

    def __init__(self, on_task_request: Callable[[Any], None], *args: Any, **kwargs: Any) -> None:
        if not isinstance(kwargs.get("pool"), Pool):  # Celery takes -P's word over the configuration's
            text = "--pool: a worker of orcd has a pool of its own, one engine's; leave the option out"
            sys.exit(report_error(InvalidRequest(text)))
        self._run_request = on_task_request
        self._is_away = False
        self._progress_part = 0
        self._backoff = Backoff(*RECONNECT_S)
        self._ready_at = math.inf
        super().__init__(self._start_request, *args, **kwargs)
        self.connection_errors += (OperationalError,)  # kombu's word where it could not open a connection by itself
        if self.hub:
            self.hub.call_repeatedly(FLUSH_S, self._flush)
            self.hub.call_repeatedly(PROGRESS_S / PROGRESS_PARTS, self._tell_progress)

    def on_send_event_buffered(self) -> None:
        """Leave the event in the buffer, which is flushed when it is full or its time has come."""

    def call_soon_ack(self, do: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Acknowledge a message on this thread, as that is only noted. Celery wakes its event loop for it.

        So do we where that has no room for messages, as there may be some now.
        """
        if getattr(do, "__name__", "") != "ack_log_error":
            return super().call_soon_ack(do, *args, **kwargs)
        do(*args, **kwargs)
        task_consumer = self.task_consumer  # the event loop sets it to None when the connection is lost
        if task_consumer is not None and task_consumer.channel.lacks_room:
            self.hub.call_soon(bool)
        return None

    def on_ready(self) -> None:
        """Consuming begins: say how many messages may be taken at once. Celery itself only asks whether one may."""
        super().on_ready()
        self.task_consumer.channel.qos.num_free = self._num_free
        self.task_consumer.channel.qos.on_unreadable = self._refuse
        self._ready_at = time.monotonic()
        if self._is_away:
            self._is_away = False
            logger.warning("Redis is back")

    def _num_free(self) -> int:
        return min(int(self.pool.num_processes) - len(state.reserved_requests), int(self.pool.num_free))

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, however long it takes; raises ``WorkerShutdown`` when the worker is told to stop."""
        first, most = RECONNECT_S
        conn.ensure_connection(
            lambda error, _interval: self._say_away(error),
            interval_start=first,
            interval_step=first,
            interval_max=most,
            callback=state.maybe_shutdown,
        )
        self.first_connection_attempt = False
        return conn

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Wait a moment: Redis is there and refuses what a connection begins with."""
        self._say_away(exc)
        if time.monotonic() > self._ready_at + STABLE_S:
            self._backoff.succeeded()
        self._ready_at = math.inf
        time.sleep(self._backoff.failed(exc))

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Drop the connection and wait a moment. What this worker had taken is delivered again, to it or to others."""
        self._say_away(exc)
        connection, self.connection = self.connection, None
        with suppress(Exception):  # there may be nobody to take leave of
            connection.collect(socket_timeout=CLOSE_S)
        self.on_connection_error_before_connected(exc)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """What takes messages: Celery gets those that it can read, and of tasks that it knows."""
        handle = super().create_task_handler(*args, **kwargs)

        tasks = self.strategies.keys() - CANNOT_RUN

        def on_message(message: Any) -> None:
            read_task(message, tasks)
            handle(message)

        return on_message

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002 - Celery's arguments
        """Celery finds that a message is not what it sends for a task."""
        raise Unreadable(f"Celery cannot take it: {type(exc).__name__}")

    def _start_request(self, request: Any) -> None:
        """Hand a task over to the pool, now or when its ``eta`` has come."""
        try:
            self._run_request(request)
        except (RedisError, OSError):
            raise
        except Exception as error:
            state.task_ready(request)
            why = Unreadable(f"it cannot be run: {type(error).__name__}", request.id)
            request.message.channel.qos.dead_letter(request.message.delivery_tag, why)

    def _refuse(self, why: Unreadable) -> None:
        """Tell the sender of a message, as Celery does of tasks that a worker does not know."""
        if why.message_id:
            reason = f"the message cannot be {'run' if why.is_foreign else 'read'}: {why.reason}"
            self.pool.submit(partial(refuse_task, task_id=why.message_id, reason=reason))

    def _say_away(self, error: Exception) -> None:
        if not self._is_away:
            self._is_away = True
            logger.warning("Redis is away or refuses commands; waiting for it", exc_info=error)

    def _tell_progress(self) -> None:
        self._progress_part = (self._progress_part + 1) % PROGRESS_PARTS
        running = self.pool.dispatcher.running_jobs()
        for request in list(state.active_requests):
            if isinstance(request, Request) and hash(request.id) % PROGRESS_PARTS == self._progress_part:
                request.tell_progress(running)

    def _flush(self) -> None:
        self.pool.observer.loop_turned()
        self._flush_events()
        if self.task_consumer is not None:
            self.task_consumer.channel.qos.flush()
