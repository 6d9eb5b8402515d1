"""Kombu's Redis transport, less some of its work for each message, which bounds the jobs that a worker takes a second.

It makes a client object anew for every command: redis-py takes 70 us for one, and a job needs four or more. And it
waits for Redis at every acknowledgement: here they go with the next message, or ten times a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import celery.app.amqp
import kombu
from kombu.transport import redis, virtual
from redis.exceptions import RedisError


class QoS(redis.QoS):  # type: ignore[misc]
    """Keeps acknowledgements for a while. One that is lost with its process costs a second delivery, of a job that its
    record then shows as done."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._acked: list[str] = []

    def ack(self, delivery_tag: str) -> None:
        """The message need not be delivered again; Redis is told later."""
        self._acked.append(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def flush(self) -> None:
        """Tell Redis now."""
        if self._acked:
            with self.pipe_or_acquire() as pipe:
                pipe.execute()

    @contextmanager
    def pipe_or_acquire(self, pipe: Any = None, client: Any = None) -> Iterator[Any]:
        """A pipeline, which begins with what is to be acknowledged."""
        with super().pipe_or_acquire(pipe, client) as made:
            if pipe is None and self._acked:
                made.zrem(self.unacked_index_key, *self._acked).hdel(self.unacked_key, *self._acked)
                self._acked.clear()
            yield made

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """At the end, give back what was not acknowledged, and only that."""
        with suppress(RedisError):  # then all of it is delivered again
            self.flush()
        super().restore_unacked_once(stderr)


class Channel(redis.Channel):  # type: ignore[misc]
    """Keeps its client as long as its pool of connections; redis-py's clients are thread-safe."""

    QoS = QoS

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
    """A connection whose URL begins with redis:// or rediss://. (``broker_transport`` would show in that URL.)"""

    def get_transport_cls(self) -> type[Transport]:
        """The transport, whatever the URL's scheme."""
        return Transport


class Amqp(celery.app.amqp.AMQP):  # type: ignore[misc]
    """What an app's connections are made by."""

    Connection = Connection
