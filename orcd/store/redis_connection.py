"""How clients reach Redis, and what they say when they cannot."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import ExponentialBackoff

from orcd.errors import InvalidRequest, RedisUnavailable
from orcd.settings import ClientSettings

CONNECT_TIMEOUT_S = 5
ANSWER_TIMEOUT_S = 15
NUM_RETRIES = 3
RETRY_BACKOFF = ExponentialBackoff(cap=0.2, base=0.02)
"""How a client tries a command again, in redis-py's terms; what takes longer is for `orcd.store.backoff.Backoff`."""
HEALTH_CHECK_S = 30
"""A connection that was idle for so long is tried before it is used; a subscription, while it is silent."""


def connect(
    from_url: Any, settings: ClientSettings, retry: Any, answer_timeout_s: float | None = ANSWER_TIMEOUT_S
) -> Any:
    """A sync or asyncio Redis client, made by ``from_url``; opens no connection yet.

    With ``answer_timeout_s`` None the caller bounds the time that an answer may take. Raises `InvalidRequest` on a
    malformed URL. The result is untyped: redis-py's stubs mix sync and async answers.
    """
    try:
        return from_url(
            settings.redis_url,
            retry=retry,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=answer_timeout_s,
            health_check_interval=HEALTH_CHECK_S,
            max_connections=2**31,  # every stream holds one
        )
    except ValueError:
        raise InvalidRequest("redis_url: must look like redis://HOST:PORT/DB (see ORCD_REDIS_URL)") from None


@contextmanager
def redis_errors(settings: ClientSettings) -> Iterator[None]:
    """Turn redis-py's errors into `RedisUnavailable`; their text may quote a command's arguments, so it is left out."""
    url = safe_url(settings.redis_url)
    try:
        yield
    except redis.AuthenticationError:
        raise RedisUnavailable(f"Redis at {url} refuses the password; set ORCD_REDIS_URL") from None
    except (redis.ConnectionError, redis.TimeoutError):
        raise RedisUnavailable(f"cannot reach Redis at {url}; start it or set ORCD_REDIS_URL") from None
    except redis.RedisError as error:
        # Inside a script an older Redis reports it as any other error of the script.
        if isinstance(error, redis.OutOfMemoryError) or "OOM command not allowed" in str(error):
            raise RedisUnavailable(f"Redis at {url} is full; raise its maxmemory") from None
        raise RedisUnavailable(f"Redis at {url} refused a command: {type(error).__name__}") from None


def safe_url(redis_url: str) -> str:
    """The URL without its password, for messages and logs.

    The password may hold any character: what is hidden ends at the last ``@``.
    """
    return re.sub(r"^(\w+://[^:/@]*):.*@", r"\1:**@", redis_url)
