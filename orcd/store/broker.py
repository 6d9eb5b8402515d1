"""How all that send or take Celery messages speak to the broker, which is the same Redis.

Clients, workers and Flower must agree on the broker's options, so all of them take them from here. This module and
`orcd.store.enqueue` are the only ones of `orcd` that know Celery.
"""

from __future__ import annotations

from typing import Any

import celery.app.amqp
import kombu
import kombu.connection
from kombu.transport import redis
from kombu.utils.json import dumps
from redis.backoff import NoBackoff
from redis.retry import Retry

from orcd.settings import ClientSettings
from orcd.store import schema
from orcd.store.redis_address import RedisAddress
from orcd.store.redis_connection import ANSWER_TIMEOUT_S, HEALTH_CHECK_S, connection_class, make_pool

DEFAULT_PRIORITY = 5
PRIORITIES = list(range(10))
PRIORITY_SEPARATOR = ":"
"""Between a queue and a priority, in a list's name. kombu's own cannot be typed."""


def broker_configuration(settings: ClientSettings) -> dict[str, Any]:
    """What the Celery apps of clients, workers and Flower have in common. Raises `InvalidRequest` on a malformed URL.

    The password is in the address only, which Celery shows without it. Its own settings just tell people and Flower
    what kind of broker there is.
    """
    address = RedisAddress.parse(settings.redis_url)
    return {
        "broker_url": address.kombu_url(),
        "broker_use_ssl": dict(address.tls) or address.uses_tls,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "task_default_priority": DEFAULT_PRIORITY,
        "task_create_missing_queues": True,
        "task_send_sent_event": False,
        "broker_connection_retry_on_startup": True,
        "broker_channel_error_retry": True,
        "broker_transport_options": {
            "address": address,
            "master_name": address.master,  # for Flower
            "priority_steps": PRIORITIES,
            "sep": PRIORITY_SEPARATOR,
            "global_keyprefix": settings.key_prefix,
            "queue_order_strategy": "priority",
            "socket_timeout": ANSWER_TIMEOUT_S,
            "health_check_interval": HEALTH_CHECK_S,
        },
    }


class Channel(redis.Channel):  # type: ignore[misc]
    """Connects to the address in its options, keeps its client as long as its pool of connections, and wakes workers.

    kombu knows fewer kinds of addresses, and makes a client object anew for every command, which takes redis-py 70 us;
    clients are thread-safe.
    """

    # kombu has one separator for lists and for bindings. Bindings are shared with all that use Celery on this Redis.
    from_transport_options = (*(name for name in redis.Channel.from_transport_options if name != "sep"), "address")
    address: RedisAddress
    keyprefix_fanout: str

    _kept_client: Any = None

    def _get_pool(self, asynchronous: bool = False) -> Any:
        self.keyprefix_fanout = self.keyprefix_fanout.format(db=self.address.db)
        kind = connection_class(self.address)
        return make_pool(
            self.address,
            connection_class=self._watched(kind) if asynchronous else kind,
            retry=Retry(NoBackoff(), 0),  # kombu itself tries again; redis-py would block its event loop
            socket_timeout=self.socket_timeout,
            health_check_interval=self.health_check_interval,
        )

    def _watched(self, kind: type[Any]) -> type[Any]:
        """Connections that tell the poller when they are closed."""
        channel = self

        class Watched(kind):  # type: ignore[misc]
            def disconnect(self, *args: Any, **options: Any) -> None:
                super().disconnect(*args, **options)
                if channel._registered:
                    channel._on_connection_disconnect(self)

        return Watched

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:  # one for the poller and one for broadcasts, which kombu keeps
            return super()._create_client(asynchronous=True)
        if self._kept_client is None or self._kept_client.connection_pool is not self.pool:
            self._kept_client = super()._create_client()
        return self._kept_client

    def _q_for_pri(self, queue: str, pri: int) -> str:
        step = self.priority(pri)
        return f"{queue}{PRIORITY_SEPARATOR}{step}" if step else queue

    def get_table(self, exchange: str) -> list[tuple[str, ...]]:
        """The bindings of an exchange, also those of senders that are told the separator of our lists."""
        with self.conn_or_acquire() as client:
            members = [member.decode() for member in client.smembers(self.keyprefix_queue % exchange)]
        rows = (tuple(member.split(self.sep if self.sep in member else PRIORITY_SEPARATOR)) for member in members)
        return [row for row in rows if len(row) == 3]

    def _put(self, queue: str, message: Any, **options: Any) -> None:
        """Send a message. Workers do not block on the list, so they are told when it was empty before."""
        # An answer to a remote control command, or one of a batch of messages.
        if queue in self._expires or options.get("_publish_batch") is not None:
            super()._put(queue, message, **options)
            return
        waiting = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
        key, wake = self.global_keyprefix + waiting, self.global_keyprefix + schema.WAKE
        with self.conn_or_acquire() as client:
            client.eval(schema.celery_script("push"), 1, key, dumps(message), wake)


class Transport(redis.Transport):  # type: ignore[misc]
    """Opens these channels.

    A Redis that refuses a command (it is read-only, full, without its replicas ...) is to kombu's users like one that
    is away: they connect again until it is there. kombu calls these channel errors, for which Celery's worker ends.
    """

    Channel = Channel
    connection_errors = redis.Transport.connection_errors + redis.Transport.channel_errors


class ConnectionPool(kombu.connection.ConnectionPool):  # type: ignore[misc]
    """Its connections have the transport of the one that they are copies of; kombu goes by the URL's scheme."""

    def new(self) -> Any:
        """One more connection, which is not open yet."""
        connection = super().new()
        connection.get_transport_cls = self.connection.get_transport_cls
        return connection


class Connection(kombu.Connection):  # type: ignore[misc]
    """A connection to the address in its options, whatever kombu makes of its URL."""

    def get_transport_cls(self) -> type[Transport]:
        """The transport, whatever the URL's scheme."""
        return Transport

    def as_uri(self, include_password: bool = False, *_: Any, **__: Any) -> str:
        """The address; with its password, as Flower can read it."""
        address: RedisAddress = self.transport_options["address"]
        return address.kombu_url(with_login=True) if include_password else str(address)

    def info(self) -> dict[str, Any]:
        """What ``inspect stats`` shows."""
        options = self.transport_options
        return {**super().info(), "transport_options": options | {"address": str(options["address"])}}

    def Pool(self, limit: int | None = None, **options: Any) -> ConnectionPool:  # noqa: N802 - kombu's name
        """A pool of such connections."""
        return ConnectionPool(self, limit, **options)


class Amqp(celery.app.amqp.AMQP):  # type: ignore[misc]
    """What a publishing app's connections are made by."""

    Connection = Connection
