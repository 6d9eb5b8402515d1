"""How clients and workers reach Redis, and what they say when they cannot."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio
from redis.asyncio import connection as async_connection
from redis.asyncio import sentinel as async_sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import MasterDownError, TryAgainError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry
from redis.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from orcd.errors import RedisUnavailable
from orcd.settings import ClientSettings
from orcd.store.commands.connection_pool import MAX_IDLE, ConnectionPool, close_spare, timed_by_the_kernel
from orcd.store.commands.timed_redis import ANSWER_TIMEOUT_S, TimedRedis, TimedRetry
from orcd.store.redis_address import RedisAddress

CONNECT_TIMEOUT_S = 5
SENTINEL_TIMEOUT_S = 1
"""A sentinel that does not answer for so long is passed over."""
NUM_RETRIES = 3
RETRY_BACKOFF = ExponentialBackoff(cap=0.2, base=0.02)
"""How a client tries a command again, in redis-py's terms; what takes longer is for `orcd.store.backoff.Backoff`."""
OUT_OF_ORDER = ("BUSY", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "UNBLOCKED")
"""What a Redis that can do nothing at the moment says."""
HEALTH_CHECK_S = 30
"""A connection that was idle for so long is tried before it is used; a subscription, while it is silent."""
OLDEST_VERSION = (6, 2)
"""Of Redis, and of servers that say they are compatible with it."""


_UNKNOWN_COMMAND = re.compile(r"unknown command [`']([A-Z]+)|command called from")
"""What a server says of a command that it has not or has renamed, by itself and within a script."""


class UnsuitableRedisError(redis.RedisError):
    """The server that answers is none that orcd can work with. The text is a sentence's end: what it is."""


def connect(settings: ClientSettings, retry: Retry | None = None) -> redis.Redis:
    """A client, which opens no connection yet. Raises `InvalidRequest` on a malformed URL."""
    retry = retry or TimedRetry(RETRY_BACKOFF, NUM_RETRIES)
    address = RedisAddress.parse(settings.redis_url)
    return redis.Redis.from_pool(make_pool(address, retry=retry, socket_timeout=ANSWER_TIMEOUT_S))


def connect_async(settings: ClientSettings) -> redis.asyncio.Redis:
    """`connect` for asyncio.

    Raises `InvalidRequest` on a malformed URL.
    """
    address = RedisAddress.parse(settings.redis_url)
    options = _options(address) | {
        "retry": AsyncRetry(RETRY_BACKOFF, NUM_RETRIES),
        "socket_timeout": None,
        "redis_connect_func": _greet_async,
    }
    if address.master:
        return TimedRedis.from_pool(_AsyncSentinelPool(address, **options))
    kind: type[Any] = async_connection.SSLConnection if address.uses_tls else async_connection.Connection
    if address.path:
        kind = async_connection.UnixDomainSocketConnection
    return TimedRedis.from_pool(_AsyncPool(connection_class=kind, **options))


def make_pool(address: RedisAddress, *, retry: Retry, socket_timeout: float, **options: Any) -> redis.ConnectionPool:
    """A pool of connections with more of redis-py's ``options``, which opens none yet."""
    options = {"connection_class": connection_class(address)} | _options(address) | options
    options |= {"retry": retry, "socket_timeout": socket_timeout, "redis_connect_func": _greet}
    if not address.master:
        return ConnectionPool(**options)
    return _SentinelPool(address, **options)


def connection_class(address: RedisAddress) -> type[Any]:
    """What redis-py calls the kind of connection that the address needs."""
    if address.uses_tls:
        return SentinelManagedSSLConnection if address.master else redis.SSLConnection
    if address.master:
        return timed_by_the_kernel(SentinelManagedConnection)
    return timed_by_the_kernel(redis.UnixDomainSocketConnection if address.path else redis.Connection)


class _AsyncPool(async_connection.ConnectionPool):
    """Closes the idle connections that are too many."""

    async def release(self, connection: Any) -> None:
        await super().release(connection)
        await _close_spare_async(self)


async def _close_spare_async(pool: async_connection.ConnectionPool) -> None:
    if len(pool._available_connections) > MAX_IDLE:
        await pool._available_connections.pop(0).disconnect()


class _SentinelPool(SentinelConnectionPool):
    """Closes the connections to the sentinels with those to the master, and the idle ones that are too many."""

    def __init__(self, address: RedisAddress, **options: Any) -> None:
        once = _sentinel_options(address) | {"retry": Retry(NoBackoff(), 0)}
        sentinels = Sentinel(address.hosts, sentinel_kwargs=once)  # type: ignore[no-untyped-call]
        super().__init__(address.master, sentinels, **options)  # type: ignore[no-untyped-call]  # redis-py leaves it so

    def release(self, connection: Any) -> None:
        super().release(connection)
        close_spare(self)

    def disconnect(self, inuse_connections: bool = True) -> None:
        super().disconnect(inuse_connections)
        if inuse_connections:
            self.sentinel_manager.close()


class _AsyncSentinelPool(async_sentinel.SentinelConnectionPool):
    """Closes the connections to the sentinels with those to the master, and the idle ones that are too many."""

    def __init__(self, address: RedisAddress, **options: Any) -> None:
        once = _sentinel_options(address) | {"retry": AsyncRetry(NoBackoff(), 0)}
        sentinels = async_sentinel.Sentinel(address.hosts, sentinel_kwargs=once)  # type: ignore[no-untyped-call]
        options["ssl"] = address.uses_tls
        super().__init__(address.master, sentinels, **options)  # type: ignore[no-untyped-call]  # redis-py leaves it so

    async def release(self, connection: Any) -> None:
        await super().release(connection)
        await _close_spare_async(self)

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:
            await self.sentinel_manager.aclose()


def _options(address: RedisAddress) -> dict[str, Any]:
    """What connections of all kinds have in common."""
    place: dict[str, Any] = {"path": address.path} if address.path else {}
    if not address.path and not address.master:
        ((place["host"], place["port"]),) = address.hosts
    return {
        **place,
        **address.login,
        **address.tls,
        "db": address.db,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "health_check_interval": HEALTH_CHECK_S,
        "max_connections": 2**31,  # every stream holds one
        "retry_on_error": [redis.ReadOnlyError],  # a master that became a replica: its name leads elsewhere by now
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),  # of Redis Cloud only
        "driver_info": None,  # it costs two round trips to tell Redis the name of its library
    }


def _sentinel_options(address: RedisAddress) -> dict[str, Any]:
    """How a sentinel is asked: once, as there are others."""
    timeouts = {"socket_timeout": SENTINEL_TIMEOUT_S, "socket_connect_timeout": SENTINEL_TIMEOUT_S}
    return {**timeouts, "ssl": address.uses_tls, **address.tls, **address.sentinel_login}


def _greet(connection: Any) -> None:
    """Log in, and look at what the server says of itself. redis-py would try out the new connection first."""
    connection.on_connect_check_health(check_health=False)
    _check(connection.handshake_metadata)


async def _greet_async(connection: Any) -> None:
    await connection.on_connect_check_health(check_health=False)
    await connection.send_command("HELLO", check_health=False)  # redis-py does not keep the answer to its own
    _check(await connection.read_response())


def oldest_version() -> str:
    """`OLDEST_VERSION` in words."""
    return ".".join(map(str, OLDEST_VERSION))


def _check(handshake: Any) -> None:
    """Raises `UnsuitableRedisError`. ``handshake`` is the answer to HELLO."""
    mode = handshake.get(b"mode")
    if mode == b"cluster":
        raise UnsuitableRedisError("is a Redis Cluster, which orcd cannot use; use one server, or one with replicas")
    if mode == b"sentinel":
        raise UnsuitableRedisError("is a sentinel; use redis+sentinel://HOST:PORT/MASTER/DB")
    version = re.match(rb"(\d+)\.(\d+)", handshake.get(b"version", b""))
    if version is not None and (int(version[1]), int(version[2])) < OLDEST_VERSION:
        raise UnsuitableRedisError(f"is version {version[0].decode()}; orcd needs {oldest_version()} or newer")


@contextmanager
def redis_errors(settings: ClientSettings) -> Iterator[None]:
    """Turn redis-py's errors into `RedisUnavailable`; their text may quote a command's arguments, so it is left out."""
    try:
        yield
    except redis.RedisError as error:
        raise explain(error, RedisAddress.parse(settings.redis_url)) from None


def is_refusal(error: redis.RedisError) -> bool:
    """Whether waiting does not help: Redis was reached, and does not want us as we are, or we cannot work with it."""
    if isinstance(error, redis.AuthenticationError) or _tls_error(error) is not None:
        return True
    return not isinstance(error, redis.ConnectionError | redis.TimeoutError) and not is_out_of_order(error)


def is_out_of_order(error: redis.RedisError) -> bool:
    """Whether Redis is there, but can do nothing at the moment for anybody: it is full, read-only, cannot save ..."""
    if isinstance(error, (redis.OutOfMemoryError, redis.ReadOnlyError, MasterDownError, TryAgainError)):
        return True
    # Some have no class of their own, and none has within a script.
    return isinstance(error, redis.ResponseError) and any(word in str(error) for word in OUT_OF_ORDER)


def has_wrong_type(error: object) -> bool:
    """Whether Redis refused a command because of the type of a key."""
    return isinstance(error, redis.ResponseError) and "WRONGTYPE" in str(error)


def explain(error: redis.RedisError, address: RedisAddress) -> RedisUnavailable:
    """What an error of Redis means to a user, in a line without secrets."""
    # Inside a script an older Redis reports some of these as any other error of the script.
    if isinstance(error, UnsuitableRedisError):
        text = f"Redis at {address} {error}"
    elif isinstance(error, redis.AuthenticationError):
        text = f"Redis at {address} refuses the password; set ORCD_REDIS_URL"
    elif tls_error := _tls_error(error):
        text = (
            f"no TLS connection with Redis at {address} ({tls_error}); docs/reliability.md has the options of rediss://"
        )
    elif isinstance(error, MasterNotFoundError | async_sentinel.MasterNotFoundError):
        text = f"no sentinel of {address} answers and names a master that is up; start them or set ORCD_REDIS_URL"
    elif "max number of clients reached" in str(error):
        text = f"Redis at {address} has as many clients as it may have; raise its maxclients"
    elif isinstance(error, redis.ConnectionError | redis.TimeoutError):
        text = f"cannot reach Redis at {address}; start it or set ORCD_REDIS_URL{other_scheme(error, address)}"
    elif isinstance(error, redis.InvalidResponse):
        text = f"what answers at {address} is no Redis; set ORCD_REDIS_URL"
    elif isinstance(error, redis.OutOfMemoryError) or "OOM command not allowed" in str(error):
        text = f"Redis at {address} is full; raise its maxmemory"
    elif "DB index is out of range" in str(error):
        text = f"Redis at {address} has no database {address.db}; set ORCD_REDIS_URL"
    elif unknown := _UNKNOWN_COMMAND.search(str(error)):
        name, oldest = unknown[1] or "a command", oldest_version()
        text = f"Redis at {address} does not know {name}; use version {oldest} or newer, with no command renamed"
    else:
        text = f"Redis at {address} refused a command: {type(error).__name__}"
    return RedisUnavailable(text)


def other_scheme(error: redis.RedisError, address: RedisAddress) -> str:
    """Which scheme may be meant: a server without TLS says nothing to who begins it, one with TLS leaves all others."""
    is_left = isinstance(error.__context__, ConnectionResetError) or "closed by server" in str(error)
    if address.uses_tls and isinstance(error, redis.TimeoutError):
        return f" ({address.scheme.replace('rediss', 'redis')}:// if it has no TLS)"
    if not address.uses_tls and not address.path and is_left:
        return f" ({address.scheme.replace('redis', 'rediss')}:// if it has TLS)"
    return ""


def _tls_error(error: redis.RedisError) -> str | None:
    """Why the two sides cannot agree on TLS, in OpenSSL's words; None if it was something else, or only a cut."""
    cause = error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return cause.verify_message
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError) and cause.reason:
        return cause.reason.replace("_", " ").lower()
    return None
