"""What a worker waits for when it starts: a Redis that is not there yet, and its engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import redis
from celery.worker.state import maybe_shutdown

from orcd.errors import EngineLost, RedisUnavailable
from orcd.store.redis_address import RedisAddress
from orcd.store.redis_connection import explain, is_refusal
from worker.settings import Settings

RETRY_S = 0.2
POLL_S = 0.1


def wait_for_redis(connection: Any, settings: Settings, report: Callable[[RedisUnavailable], None]) -> None:
    """Return when Redis answers on ``connection``; while it cannot be reached, ``report`` that once.

    Raises `RedisUnavailable` where waiting does not help (it refuses the password, or has no such database), and
    Celery's ``WorkerShutdown`` when the worker is told to stop.
    """
    address = RedisAddress.parse(settings.redis_url)
    is_reported = False
    while True:
        try:
            connection.ping()
            return
        except redis.RedisError as error:
            if is_refusal(error):
                raise explain(error, address) from None
            cause = type(error).__name__
        if not is_reported:
            is_reported = True
            report(RedisUnavailable(f"cannot reach Redis at {address} ({cause}); waiting for it"))
        maybe_shutdown()
        time.sleep(RETRY_S)


def wait_for_engine(is_loaded: Callable[[float], bool], timeout_s: float) -> None:
    """Return when ``is_loaded``, which waits so many seconds at most, says that the engine is ready.

    Raises what that raises, `EngineLost` after ``timeout_s``, and Celery's ``WorkerShutdown`` or ``WorkerTerminate``
    when the worker is told to leave.
    """
    end = time.monotonic() + timeout_s
    while not is_loaded(POLL_S):
        maybe_shutdown()
        if time.monotonic() > end:
            raise EngineLost(f"the engine was not ready after {timeout_s} s")
