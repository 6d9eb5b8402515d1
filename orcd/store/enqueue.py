"""Celery messages: their queues, the broker's options, and how they are sent.

A message only makes a worker look at a job; the job itself is in its record. Clients, workers and Flower must agree on
the broker's options, so all of them take them from here. This is the one module of `orcd` that knows Celery.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import celery.app.amqp
import kombu
from celery import Celery
from kombu.exceptions import OperationalError
from kombu.pools import ProducerPool
from kombu.transport import redis

from orcd.settings import ClientSettings

log = logging.getLogger(__name__)

DEFAULT_PRIORITY = 5
PRIORITIES = list(range(10))
MAX_CONNECTIONS = 10
"""Threads of a publisher that can send at once; more wait for each other."""


@dataclass(frozen=True, slots=True)
class Message:
    """A Celery message to publish for a job that waits in the queue."""

    job_id: str
    queue: str
    priority: int
    lease_lost: bool = False


def queue_name(model: str | None) -> str:
    """The Celery queue of a model's jobs; jobs for any model go to Celery's default queue."""
    return f"orcd.{model}" if model else "celery"


def broker_configuration(settings: ClientSettings) -> dict[str, Any]:
    """What the Celery apps of clients, workers and Flower have in common."""
    return {
        "broker_url": settings.redis_url,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "task_default_priority": DEFAULT_PRIORITY,
        "task_create_missing_queues": True,
        "task_send_sent_event": False,
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": {
            "priority_steps": PRIORITIES,
            "sep": ":",
            "queue_order_strategy": "priority",
            # A job's truth is its lease, so an early redelivery is a no-op; this only bounds how long a message of a
            # dead worker keeps its place in Celery's own bookkeeping.
            "visibility_timeout": 3600,
        },
    }


class Channel(redis.Channel):  # type: ignore[misc]
    """Keeps its client as long as its pool of connections; redis-py's clients are thread-safe.

    kombu makes a client object anew for every command, which takes redis-py 70 us.
    """

    _kept_client: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:  # one for the poller and one for broadcasts, which kombu keeps
            return super()._create_client(asynchronous=True)
        if self._kept_client is None or self._kept_client.connection_pool is not self.pool:
            self._kept_client = super()._create_client()
        return self._kept_client


class Transport(redis.Transport):  # type: ignore[misc]
    """Opens these channels."""

    Channel = Channel


class Connection(kombu.Connection):  # type: ignore[misc]
    """A connection whose URL begins with redis:// or rediss://, as ``broker_transport`` would not leave it."""

    def get_transport_cls(self) -> type[Transport]:
        """The transport, whatever the URL's scheme."""
        return Transport


class Amqp(celery.app.amqp.AMQP):  # type: ignore[misc]
    """What a publishing app's connections are made by."""

    Connection = Connection


class Publisher:
    """Sends the messages of jobs. Thread-safe; in a forked process it opens connections of that process's own."""

    def __init__(self, settings: ClientSettings) -> None:
        self._app = Celery("orcd", set_as_current=False, amqp="orcd.store.enqueue:Amqp")
        # Without a result backend: Celery's would subscribe to every job it sends.
        self._app.conf.update(broker_configuration(settings), result_backend="disabled")
        self._open()
        _publishers.add(self)

    def publish(self, message: Message) -> None:
        """Send one message. Raises kombu's ``OperationalError`` when the broker cannot be reached."""
        with self._producers.acquire(block=True) as producer:
            self._app.send_task(
                "tasks.generate",
                kwargs={"job_id": message.job_id},
                task_id=message.job_id,
                queue=message.queue,
                priority=message.priority,
                producer=producer,
                retry=True,
                retry_policy={"max_retries": 2, "interval_start": 0.1, "interval_step": 0.4},
            )

    def announce(self, messages: Sequence[Message]) -> None:
        """Send the messages of jobs that are stored.

        A stored job is safe: where a message cannot be sent, this logs a warning and leaves the job to a worker's
        reaper.
        """
        for num_sent, message in enumerate(messages):
            try:
                self.publish(message)
            except OperationalError:
                num_left = len(messages) - num_sent
                log.warning("%d jobs are stored but were not announced; a worker will find them in a while", num_left)
                return

    def close(self) -> None:
        """Give the connections back."""
        _publishers.discard(self)
        self._producers.force_close_all()
        self._connections.force_close_all()
        self._app.close()

    def _open(self) -> None:
        """Pools of this publisher's own, which hold no connection yet.

        Celery's are shared by the whole process, so that nobody could close them, and do not notice a fork: parent and
        child would write to one socket.
        """
        self._connections = self._app.connection_for_write().Pool(MAX_CONNECTIONS)
        self._producers = ProducerPool(self._connections, limit=MAX_CONNECTIONS)


_publishers: WeakSet[Publisher] = WeakSet()


def _open_anew() -> None:
    for publisher in _publishers:
        publisher._open()


os.register_at_fork(after_in_child=_open_anew)
