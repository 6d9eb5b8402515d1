"""What tests of several packages share, first of all a real Redis, never the one of ``ORCD_REDIS_URL``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from tasks.redis_server import RedisServer

# Before NumPy is imported: its threads spin, and beside the processes that tests start they made tests 10 times slower.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One server for the whole run; most tests want `redis_url`, which empties it first."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(shared_redis: RedisServer) -> str:
    """An empty Redis."""
    with redis.Redis.from_url(shared_redis.url) as connection:
        connection.flushall()
    return shared_redis.url


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A server of the test's own, which it may kill and start again without losing data."""
    with RedisServer(appendonly=True) as server:
        yield server


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds, at most ten seconds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What lies in a folder named gpu is marked so, and skipped where there is none."""
    for_gpu = [item for item in items if item.path.parent.name == "gpu"]
    reason = _why_no_gpu() if for_gpu else ""
    for item in for_gpu:
        item.add_marker(pytest.mark.gpu)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_no_gpu() -> str:
    """Why there is no CUDA device for tests; empty if there is one."""
    try:
        from cuda.bindings import driver  # noqa: F401
        from cupy.cuda import runtime

        runtime.getDeviceCount()
    except (ImportError, RuntimeError) as error:
        return f"no CUDA device: {error}"
    return ""
