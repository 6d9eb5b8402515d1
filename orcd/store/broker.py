"""How all that send or take Celery messages speak to the broker, which is the same Redis.

Clients, workers and Flower must agree on the broker's options, so all of them take them from here. This module and
`orcd.store.enqueue` are the only ones of `orcd` that know Celery.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from uuid import uuid4

import celery.app.amqp
import kombu
import kombu.connection
from kombu.transport import redis, virtual
from kombu.utils.json import dumps
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from orcd.settings import ClientSettings
from orcd.store import schema
from orcd.store.commands.redis_script import RedisScript
from orcd.store.commands.timed_redis import ANSWER_TIMEOUT_S
from orcd.store.redis_address import RedisAddress
from orcd.store.redis_connection import HEALTH_CHECK_S, connection_class, has_wrong_type, make_pool

log = logging.getLogger(__name__)

DEFAULT_PRIORITY = 5
PRIORITIES = list(range(10))
PRIORITY_SEPARATOR = ":"
"""Between a queue and a priority, in a list's name. kombu's own cannot be typed."""

EMPTIED_TTL_S = 3600
TENANT_HEADER = "orcd_tenant"
"""The header of a message that waits for its tenant's turn: `orcd.store.enqueue.tenant_digest`."""


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


def sample_message(app: Any, task: str) -> dict[str, Any]:
    """The plain message of a job as a channel gets it from a Celery app. Nothing is sent, and no signal either."""
    kwargs = {"job_id": ""}
    made = app.amqp.create_task_message("", task, kwargs=kwargs, reply_to=app.thread_oid, ignore_result=None)
    with kombu.Connection("memory://") as nowhere:
        queue = f"orcd.{uuid4().hex}"
        nowhere.Producer(routing_key=queue).publish(
            made.body, serializer="json", headers=made.headers, **made.properties
        )
        message: dict[str, Any] = nowhere.default_channel._get(queue)
        nowhere.default_channel._delete(queue)
    return message


@cache
def say_wrong_type(key: str, consequence: str) -> None:
    """Log, once in this process, that a key has another type than its name says, and what comes of that."""
    log.warning(f"The key {key} is of a wrong type; {consequence}")  # a worker's log leaves arguments out


class Channel(redis.Channel):  # type: ignore[misc]
    """Connects to the address in its options, keeps its client as long as its pool of connections, and wakes workers.

    kombu knows fewer kinds of addresses, and makes a client object anew for every command, which takes redis-py 70 us;
    clients are thread-safe.

    Where a key that all share has a wrong type, kombu could neither send nor start a worker. Here only what is in that
    key is affected: messages go to another priority's list, and bindings are those of this process.
    """

    # kombu has one separator for lists and for bindings. Bindings are shared with all that use Celery on this Redis.
    from_transport_options = (*(name for name in redis.Channel.from_transport_options if name != "sep"), "address")
    address: RedisAddress
    keyprefix_fanout: str

    _kept_client: Any = None
    _kept_push: Any = None

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

    def _size(self, queue: str) -> int:
        with self.conn_or_acquire() as client, client.pipeline() as pipe:
            for step in self.priority_steps:
                pipe.llen(self._q_for_pri(queue, step))
            lengths = pipe.execute(raise_on_error=False)
        for length in lengths:
            if isinstance(length, Exception) and not has_wrong_type(length):
                raise length
        return sum(length for length in lengths if isinstance(length, int))

    def _purge(self, queue: str) -> int:
        """Delete all messages of a queue, those that wait for their tenants' turns too."""
        num_deleted: int = super()._purge(queue)
        with self.conn_or_acquire() as client:
            for step in self.priority_steps:
                waiting = self._q_for_pri(queue, step)
                tenants = client.zrange(f"{waiting}:tenants", 0, -1)
                client.delete(f"{waiting}:tenants", *(f"{waiting}:tenant:{tenant.decode()}" for tenant in tenants))
        return num_deleted

    def _queue_bind(self, exchange: str, *binding: Any) -> None:
        with self._without_wrong_types([exchange]):
            super()._queue_bind(exchange, *binding)

    def _delete(self, queue: str, exchange: str, *binding: Any, **options: Any) -> None:
        with self._without_wrong_types([exchange]):
            super()._delete(queue, exchange, *binding, **options)

    def _refresh_bindings(self, queues: Iterable[str]) -> None:
        with self._without_wrong_types(row[0] for queue in queues for row in self.state.queue_bindings(queue)):
            super()._refresh_bindings(queues)

    def sweep_bindings(self, limit: int = 100) -> int:
        """Delete bindings that nobody has refreshed in time; returns of how many exchanges."""
        with self._without_wrong_types([]):
            return int(super().sweep_bindings(limit))
        return 0

    @contextmanager
    def _without_wrong_types(self, exchanges: Iterable[str]) -> Iterator[None]:
        """Go on where a command failed because of the type of a key that holds bindings of these exchanges."""
        try:
            yield
        except ResponseError as error:
            if not has_wrong_type(error):
                raise
            kinds = {self.keyprefix_binding_deadlines: b"zset"}
            for exchange in exchanges:
                kinds |= dict.fromkeys(
                    (self.keyprefix_queue % exchange, self.keyprefix_binding_permanent % exchange), b"set"
                )
            with self.conn_or_acquire() as client:
                for key, kind in kinds.items():
                    if client.type(self.global_keyprefix + key) not in (kind, b"none"):
                        say_wrong_type(self.global_keyprefix + key, "no bindings are read from it or written to it")

    def get_table(self, exchange: str) -> list[tuple[str, ...]]:
        """The bindings of an exchange, also those of senders that are told the separator of our lists."""
        with self._without_wrong_types([exchange]), self.conn_or_acquire() as client:
            members = [member.decode() for member in client.smembers(self.keyprefix_queue % exchange)]
            rows = (tuple(member.split(self.sep if self.sep in member else PRIORITY_SEPARATOR)) for member in members)
            return [row for row in rows if len(row) == 3]
        own: list[tuple[str, ...]] = virtual.Channel.get_table(self, exchange)
        return own

    def _put(self, queue: str, message: Any, **options: Any) -> None:
        """Send a message. Workers do not block on the list, so they are told when it was empty before."""
        # An answer to a remote control command, or one of a batch of messages.
        if queue in self._expires or options.get("_publish_batch") is not None:
            super()._put(queue, message, **options)
            return
        wanted = self.priority(self._get_message_priority(message, reverse=False))
        # If its own list cannot be used, it goes to a more urgent one, if there is any: it must not wait longer.
        steps = sorted(self.priority_steps, key=lambda step: (step > wanted, abs(step - wanted)))
        keys = [self.global_keyprefix + self._q_for_pri(queue, step) for step in steps]
        shared = [self.global_keyprefix + name for name in (schema.WAKE, schema.EMPTIED)]
        tenant = message.get("headers", {}).get(TENANT_HEADER)
        if not isinstance(tenant, str) or not re.fullmatch(r"[0-9a-f]{16}", tenant):
            tenant = ""
        for key in self._push()(keys, [dumps(message), *shared, EMPTIED_TTL_S, tenant]):
            say_wrong_type(key.decode(), "it was deleted; jobs whose messages were in it are found in a while")

    def _push(self) -> Any:
        """The script, with a client that takes keys as they are: kombu's adds the key prefix to some of them."""
        if self._kept_push is None or self._kept_push.connection.connection_pool is not self.pool:
            self._kept_push = RedisScript(Redis(connection_pool=self.pool), schema.celery_script("push"))
        return self._kept_push


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

    def ensure(
        self,
        obj: Any,
        fun: Callable[..., Any],
        errback: Callable[..., Any] | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Callable[..., Any]:
        """As kombu's, but what may be tried again without end is tried once.

        Celery sends heartbeats, commands to workers and the answers to them in that way. While Redis is away a worker's
        event loop would stand still there, and would not see that the worker is told to stop.
        """
        return fun if max_retries is None else super().ensure(obj, fun, errback, max_retries, **options)

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
