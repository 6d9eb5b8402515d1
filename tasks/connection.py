"""How clients reach Redis, and what they say when they cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from celery import Celery

from tasks.app import create_app, safe_url
from worker.errors import InvalidRequest, OrcdError
from worker.settings import Settings

CONNECT_TIMEOUT_S = 5
ANSWER_TIMEOUT_S = 15
HEALTH_CHECK_S = 30
"""A connection that was idle for so long is tried before it is used; a subscription, while it is silent."""


class RedisUnavailable(OrcdError):
    """Redis cannot be reached or refuses to work; the message holds its address without the password."""

    retriable = True


def connect(from_url: Any, settings: Settings, retry: Any, answer_timeout_s: float | None = ANSWER_TIMEOUT_S) -> Any:
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


def publishing_app(settings: Settings) -> Celery:
    """A Celery app that only sends. Without a result backend: Celery's would subscribe to every job it sends."""
    app = create_app(settings)
    app.conf.result_backend = "disabled"
    return app


@contextmanager
def redis_errors(settings: Settings) -> Iterator[None]:
    """Turn redis-py's errors into `RedisUnavailable`; their text may quote a command's arguments, so it is left out."""
    try:
        yield
    except redis.AuthenticationError:
        raise RedisUnavailable(f"Redis at {safe_url(settings)} refuses the password; set ORCD_REDIS_URL") from None
    except (redis.ConnectionError, redis.TimeoutError):
        problem = f"cannot reach Redis at {safe_url(settings)}; start it or set ORCD_REDIS_URL"
        raise RedisUnavailable(problem) from None
    except redis.RedisError as error:
        if "OOM command not allowed" in str(error):  # inside a script it is no OutOfMemoryError
            raise RedisUnavailable(f"Redis at {safe_url(settings)} is full; raise its maxmemory") from None
        raise RedisUnavailable(f"Redis at {safe_url(settings)} refused a command: {type(error).__name__}") from None
