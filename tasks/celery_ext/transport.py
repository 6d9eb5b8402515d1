"""Kombu's Redis transport with another way to receive.

Kombu's blocks in Redis for one message (BRPOP), notes in a second command that it has it, keeps the notes of all
workers together, and waits for Redis at every acknowledgement. This one asks for as many messages as there is room for,
with a script that notes them (`tasks.celery_ext.receiver`). It asks at once when a sender says that there is something
(`orcd.store.broker`), and many times a second for senders that do not say so. The command that asks is still called
BRPOP in the names of kombu's methods.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import Empty
from typing import Any

from celery.utils.log import get_logger
from kombu.transport import redis
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from orcd.store import broker, schema
from tasks.celery_ext.message import Message, Unreadable, read_envelope
from tasks.celery_ext.receiver import QoS

MAX_TAKEN = 6
"""Messages taken at once, at most: the event loop has other things to do, too."""
POLL_S = 0.05
"""Time between two looks for messages of senders that do not wake workers."""
ANSWER_S = 5.0
"""An answer that takes longer does not come any more."""

logger = get_logger(__name__)


class Channel(broker.Channel):
    """Receives messages, as far as there is room, and hands them to their consumers.

    A message that no consumer can take goes to the dead letters; it must neither end the worker nor come again.
    """

    _in_poll: Any
    QoS = QoS
    Message = Message
    receiver_lease_ms = 10_000
    ageing_ms = 300_000
    from_transport_options = (*broker.Channel.from_transport_options, "receiver_lease_ms", "ageing_ms")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._next_look = 0.0
        self._num_wanted = 0
        self.lacks_room = False
        self._queues: dict[str, str] = {}
        self._unacknowledging: set[str] = set()
        super().__init__(*args, **kwargs)

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Consume from a queue; with ``no_ack`` a message is done when it was delivered."""
        if no_ack:
            self._unacknowledging.add(queue)
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def plain_client(self) -> Redis:
        """A client that takes keys as they are, for commands that are waited for; kombu's adds the key prefix."""
        return Redis(connection_pool=self.pool)

    def close(self) -> None:
        """Put back what was not acknowledged, if Redis is there; otherwise others do when the lease has run out."""
        if self.closed:  # kombu closes it twice when the connection was lost
            return
        self._in_poll = None  # its answer is not waited for: what it brings is put back, too
        with suppress(*self.connection_errors):
            if self._qos is not None:
                self._qos.receiver.close()
            for queue in self.auto_delete_queues & self._fanout_queues.keys():
                self.queue_delete(queue)
        self.auto_delete_queues.clear()
        super().close()

    def _subscribe(self) -> None:
        super()._subscribe()
        if self.active_queues:
            subscription = self.subclient
            if subscription.connection._sock is None:
                subscription.connection.connect()
            self._in_listen = subscription.connection
            subscription.subscribe(schema.WAKE)

    def _handle_message(self, client: Any, answer: Any) -> dict[str, Any]:
        message: dict[str, Any] = super()._handle_message(client, answer)
        if message["channel"] in (schema.WAKE, schema.WAKE.encode()):
            self._next_look = 0.0
            message["data"] = None  # there is nothing in it to deliver
        return message

    def _receive_one(self, client: Any) -> bool:
        try:
            return bool(super()._receive_one(client))
        except (RedisError, OSError, Empty):
            raise
        except Exception:
            logger.warning("A broadcast that cannot be read was ignored")
            return False

    def _brpop_start(self, *_: Any) -> None:
        """Ask for messages, if it is time to."""
        now = time.monotonic()
        room = min(self.qos.num_free(), MAX_TAKEN)
        self.lacks_room = room < 1
        if now < self._next_look or self.lacks_room:
            return
        queues = self.active_queues
        self._queues = {
            self.global_keyprefix + self._q_for_pri(queue, step): queue
            for step in self.priority_steps
            for queue in queues
        }
        self._next_look, self._num_wanted = now + POLL_S, room
        self._brpop_sent_at = now
        self._in_poll = self.client.connection
        self._in_poll.send_command(*self.qos.receiver.take_command(list(self._queues), room))

    def _brpop_read(self, **options: Any) -> bool:
        """Deliver what has come."""
        connection, self._in_poll = self._in_poll, None
        try:
            answer = self.client.parse_response(connection, "EVALSHA", **options)
        except NoScriptError:  # Redis is new, or its scripts were flushed
            self.qos.receiver.load_take()
            self._next_look = 0.0
            raise Empty from None
        except self.connection_errors:
            connection.disconnect()
            raise
        messages = self.qos.receiver.taken(answer)
        if not messages:
            raise Empty
        if len(messages) == self._num_wanted:
            self._next_look = 0.0  # there may be more
        for tag, key, text in messages:
            self._deliver_text(tag, self._queues[key], text)
        return True

    def _deliver_text(self, tag: str, queue: str, text: bytes) -> None:
        callback = self.connection._callbacks.get(queue)
        if callback is None:  # consuming ended while the message was on its way
            self.qos.reject(tag, requeue=True)
            return
        try:
            callback(read_envelope(text, tag, queue))
            if queue in self._unacknowledging:
                self.qos.ack(tag)
        except (RedisError, OSError):
            raise
        except Unreadable as why:
            self.qos.dead_letter(tag, why)
        except Exception as error:
            self.qos.dead_letter(tag, Unreadable(f"Celery cannot take it: {type(error).__name__}"))

    def is_overdue(self) -> bool:
        """Whether Redis does not answer, on a connection that seems to be there."""
        if not self._in_poll or time.monotonic() < self._brpop_sent_at + ANSWER_S:
            return False
        return self._in_poll._sock is not None and not redis._socket_readable(self._in_poll._sock)


class Poller(redis.MultiChannelPoller):  # type: ignore[misc]
    """Waits for answers and broadcasts on the connections of all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.listening: Mapping[int, Any] | None = None  # the event loop's file descriptors
        self._listening_to: dict[int, Any] = {}

    @property
    def fds(self) -> Sequence[int]:
        """What the event loop does not listen to yet: kombu has it begin in every turn, a system call for each."""
        if self.listening is None:
            return list(self._fd_to_chan)
        sockets = {connection.fileno(): connection for connection in self._chan_to_sock.values()}
        known, self._listening_to = self._listening_to, sockets
        return [fd for fd in self._fd_to_chan if fd not in self.listening or known.get(fd) is not sockets.get(fd)]

    def _update_brpop_polling(self) -> None:
        """Nothing: an answer that has come is always read, since there was room for it when it was asked for."""

    def on_poll_start(self) -> None:
        """Ask and listen on every channel that should."""
        for channel in self._channels:
            if channel.active_queues or channel.active_fanout_queues:
                self._register_LISTEN(channel)
            if channel.active_queues and channel.qos.can_consume():
                self._register_BRPOP(channel)

    def handle_event(self, fileno: int, event: int) -> Any:
        """What has happened; nothing where a worker was only told to look: who waits for a message waits on."""
        happened = super().handle_event(fileno, event)
        return happened if happened and happened[0] else None

    def on_readable(self, fileno: int) -> Any:
        """An answer or a broadcast has come, or the connection was closed."""
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind == "BRPOP" and not channel._in_poll:
            channel.client.connection.disconnect()  # the next time there is room, it is connected again
        elif channel is not None:
            return channel.handlers[kind]()
        return None

    def maybe_restore_messages(self) -> None:
        """Have one channel renew its lease and look for messages of dead receivers."""
        for channel in self._channels:
            if channel.active_queues:
                channel.qos.restore_visible()

    def maybe_check_brpop_health(self) -> None:
        """Raises redis-py's ``ConnectionError`` if Redis does not answer.

        Messages may be on their way: the channel has to be closed, which puts them back.
        """
        if any(channel.is_overdue() for channel in self._channels):
            raise RedisConnectionError("Redis does not answer")

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        """Wait for something to deliver, where there is no event loop."""
        return super().get(callback, POLL_S if timeout is None else min(timeout, POLL_S))


class Transport(broker.Transport):
    """Opens these channels."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Have the event loop turn at least so often: every turn looks whether it is time to ask."""
        super().register_with_event_loop(connection, loop)
        self.cycle.listening = loop.readers
        loop.call_repeatedly(POLL_S, bool)


class Connection(broker.Connection):
    """A worker's connection."""

    def get_transport_cls(self) -> type[Transport]:
        """The transport, whatever the URL's scheme."""
        return Transport


class Amqp(broker.Amqp):
    """What a worker's connections are made by."""

    Connection = Connection
