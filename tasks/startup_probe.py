"""What a worker waits for when it starts: a Redis that is not there yet, and its engine; how that Redis is set up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orcd.errors import EngineLost, RedisUnavailable
from orcd.monitoring.check import Check
from orcd.monitoring.redis_checks import server_checks
from orcd.store.redis_address import RedisAddress
from orcd.store.redis_connection import explain, is_refusal, make_pool, other_scheme
from worker.settings import Settings

RETRY_S = 0.2
POLL_S = 0.1
ANSWER_S = 2.0
"""A Redis that has not answered for so long is asked again, so that a worker which is told to stop meanwhile does."""


def wait_for_redis(
    settings: Settings, report: Callable[[RedisUnavailable], None], maybe_shutdown: Callable[[], None]
) -> None:
    """Return when Redis answers; while it cannot be reached, ``report`` that once.

    ``maybe_shutdown`` is called before each further try, and may end the waiting by an exception. Raises
    `RedisUnavailable` where waiting does not help (Redis refuses the password, or has no such database).
    """
    address = RedisAddress.parse(settings.redis_url)
    with redis.Redis.from_pool(make_pool(address, retry=Retry(NoBackoff(), 0), socket_timeout=ANSWER_S)) as connection:
        _wait(connection, address, report, maybe_shutdown)


def _wait(
    connection: Any,
    address: RedisAddress,
    report: Callable[[RedisUnavailable], None],
    maybe_shutdown: Callable[[], None],
) -> None:
    is_reported = False
    while True:
        try:
            connection.ping()
            return
        except redis.RedisError as error:
            if is_refusal(error):
                raise explain(error, address) from None
            cause = type(error).__name__ + other_scheme(error, address)
        if not is_reported:
            is_reported = True
            report(RedisUnavailable(f"cannot reach Redis at {address} ({cause}); waiting for it"))
        maybe_shutdown()
        time.sleep(RETRY_S)


def setup_problems(connection: Any) -> list[Check]:
    """By which of its settings Redis may lose jobs; none where it may not be asked."""
    try:
        return [check for check in server_checks(connection.info()) if check.outcome == "problem"]
    except redis.RedisError:
        return []


def wait_for_engine(is_loaded: Callable[[float], bool], timeout_s: float, maybe_shutdown: Callable[[], None]) -> None:
    """Return when ``is_loaded``, which waits so many seconds at most, says that the engine is ready.

    Raises what that raises, what ``maybe_shutdown`` does, and `EngineLost` after ``timeout_s``.
    """
    end = time.monotonic() + timeout_s
    while not is_loaded(POLL_S):
        maybe_shutdown()
        if time.monotonic() > end:
            raise EngineLost(f"the engine was not ready after {timeout_s} s")
