"""Workers' heartbeats in Redis, by its clock."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from orcd.monitoring.worker_registry import WorkerRegistry
from orcd.store import schema


@pytest.fixture
def registry(connection: redis.Redis) -> WorkerRegistry:
    return WorkerRegistry(connection)


def test_a_worker_is_listed_with_what_it_last_said_until_it_is_removed(registry: WorkerRegistry) -> None:
    registry.beat("b", {"state": "loading", "jobs": 7})
    registry.beat("a", {"state": "ready"})
    registry.beat("b", {"state": "ready", "tokens_per_s": 12.5})
    first, second = registry.workers()
    assert (first.name, second.name) == ("a", "b")
    assert (second.state, second.jobs, second.tokens_per_s) == ("ready", 0, 12.5)
    assert second.silent_ms < 60_000
    registry.remove("a")
    assert [worker.name for worker in registry.workers()] == ["b"]


def test_the_time_of_a_heartbeat_is_that_of_redis(registry: WorkerRegistry, connection: redis.Redis) -> None:
    """A worker whose own clock was two minutes fast took all others off the list."""
    seconds: Any = connection.time()[0]
    registry.beat("a", {"state": "ready"})
    (worker,) = registry.workers()
    assert seconds * 1000 <= worker.last_seen_ms < seconds * 1000 + 60_000


def test_a_worker_that_has_long_been_silent_is_forgotten(registry: WorkerRegistry, connection: redis.Redis) -> None:
    now_ms = connection.time()[0] * 1000  # type: ignore[index]
    connection.zadd(schema.WORKERS, {"dead": now_ms - 61_000, "silent": now_ms - 30_000})
    registry.beat("alive", {"state": "ready"})
    assert connection.zrange(schema.WORKERS, 0, -1) == [b"silent", b"alive"]
    assert [worker.name for worker in registry.workers()] == ["alive"], "of the other there is no heartbeat"
    for key in (schema.WORKERS, schema.worker_key("alive")):
        assert 0 < connection.ttl(key) <= 60  # type: ignore[operator]


def test_a_heartbeat_of_a_wrong_type_hides_no_other(registry: WorkerRegistry, connection: redis.Redis) -> None:
    for name in ("a", "b"):
        registry.beat(name, {"state": "ready"})
    connection.set(schema.worker_key("a"), "x")
    assert [worker.name for worker in registry.workers()] == ["b"]
    registry.beat("a", {"state": "ready"})
    assert len(registry.workers()) == 2


def test_a_list_of_another_type_is_made_anew(registry: WorkerRegistry, connection: redis.Redis) -> None:
    connection.set(schema.WORKERS, "x")
    registry.beat("a", {"state": "ready"})
    assert [worker.name for worker in registry.workers()] == ["a"]


def test_systems_with_a_prefix_of_their_own_have_workers_of_their_own(connection: redis.Redis) -> None:
    here, there = WorkerRegistry(connection, "staging:"), WorkerRegistry(connection)
    here.beat("a", {"state": "ready"})
    assert there.workers() == []
    assert not there.tell("a", "drain")
    assert here.tell("a", "drain")
    there.remove("a")
    assert [worker.name for worker in here.workers()] == ["a"]
