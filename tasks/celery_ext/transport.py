"""Kombu's Redis transport, less some of its work for each message, which bounds the jobs that a worker takes a second.

It fetches one message in two round trips: here the second brings others that have come meanwhile. And it waits for
Redis at every acknowledgement: here they go with the next message, or ten times a second. (`orcd.store.enqueue` has
what clients profit from, too.)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kombu.transport import redis, virtual
from kombu.utils.json import dumps, loads
from redis.exceptions import RedisError

from orcd.store import enqueue, schema

MAX_TAKEN = 16
"""Messages taken at once, at most: the event loop has other things to do, too."""


class QoS(redis.QoS):  # type: ignore[misc]
    """Keeps acknowledgements for a while.

    One that is lost with its process costs a second delivery, of a job that its record then shows as done.

    ``num_free`` says how many messages there is room for, the one in flight included. Those in ``taken`` are to be
    delivered (text, queue); Redis has them as unacknowledged already.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_free: Callable[[], int] = lambda: 1
        self.taken: deque[tuple[str, str]] = deque()
        self._noted: set[str] = set()
        self._acked: deque[str] = deque()

    def append(self, message: Any, delivery_tag: str) -> None:
        """A message is about to be delivered: until it is acknowledged, Redis keeps it."""
        if delivery_tag in self._noted:
            self._noted.remove(delivery_tag)
        else:
            info = message.delivery_info
            self._take(delivery_tag, dumps([message._raw, info["exchange"], info["routing_key"]]))
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """The message need not be delivered again; Redis is told later."""
        self._acked.append(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def flush(self) -> None:
        """Tell Redis now."""
        if acked := self._take_acked():
            with self.pipe_or_acquire() as pipe:
                pipe.zrem(self.unacked_index_key, *acked).hdel(self.unacked_key, *acked).execute()

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """At the end, give back what was not acknowledged, and only that."""
        with suppress(RedisError):  # then all of it is delivered again
            self.flush()
        super().restore_unacked_once(stderr)

    def _take(self, delivery_tag: str, note: str) -> None:
        channel = self.channel
        most = min(self.num_free() - 1, MAX_TAKEN)
        queues = [(queue, step) for step in channel.priority_steps for queue in channel.active_queues if most > 0]
        keys = [self.unacked_index_key, self.unacked_key, *(channel._q_for_pri(*queue) for queue in queues)]
        arguments = [time.time(), most, delivery_tag, note, *self._take_acked()]
        with channel.conn_or_acquire() as client:
            for number, text, tag in client.eval(schema.celery_script("take"), len(keys), *keys, *arguments):
                self.taken.append((text.decode(), queues[number][0]))
                self._noted.add(tag.decode())

    def _take_acked(self) -> list[str]:
        # Acknowledgements come from other threads at any time.
        return [self._acked.popleft() for _ in range(len(self._acked))]


class Channel(enqueue.Channel):
    """Delivers at once all messages that came with the one it waited for."""

    QoS = QoS

    def _brpop_read(self, **options: Any) -> Any:
        answer = super()._brpop_read(**options)
        while self.qos.taken:
            text, queue = self.qos.taken.popleft()
            self.connection._deliver(loads(text), queue)
        return answer


class Transport(enqueue.Transport):
    """Opens these channels."""

    Channel = Channel


class Connection(enqueue.Connection):
    """A worker's connection."""

    def get_transport_cls(self) -> type[Transport]:
        """The transport, whatever the URL's scheme."""
        return Transport


class Amqp(enqueue.Amqp):
    """What a worker's connections are made by."""

    Connection = Connection
