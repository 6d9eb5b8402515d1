"""The queues, counted by one of the workers at a time."""

from __future__ import annotations

import pytest
import redis

from orcd.client import Client
from orcd.monitoring.queue_watch import QueueFigures, QueueWatch
from orcd.monitoring.worker_registry import WorkerRegistry
from orcd.store import schema


def counted(watch: QueueWatch) -> QueueFigures:
    for _ in range(100):
        found = watch.look()
        if found is not None:
            return found
    raise AssertionError("no figures")


def test_one_worker_counts_and_all_read_what_it_found(client: Client, connection: redis.Redis) -> None:
    client.submit_many([{"prompt": "x", "model": "demo"}] * 900)
    connection.xadd(schema.DEAD, {"reason": "x"})
    WorkerRegistry(connection).beat("w", {"state": "ready", "model": "demo", "jobs_per_s": 3})
    first, second = QueueWatch(connection, "first"), QueueWatch(connection, "second")
    assert first.look() is None
    assert first.is_counting
    assert second.look() is None, "nothing is known yet"
    assert not second.is_counting
    found = counted(first)
    assert {queue.queue: (queue.waiting, queue.drain_ms) for queue in found.queues} == {
        "orcd": (0, 0), "orcd.demo": (900, 300_000),
    }  # fmt: skip
    assert found.dead_letters == 1
    assert second.look() == found
    assert first.look() == found, "it pauses"


def test_another_counts_when_the_one_that_did_is_gone(client: Client, connection: redis.Redis) -> None:
    client.submit(prompt="x", model="demo")
    assert QueueWatch(connection, "dies").look() is None
    assert 0 < connection.ttl(schema.COUNTING) <= 15  # type: ignore[operator]
    connection.delete(schema.COUNTING)
    assert [queue.queue for queue in counted(QueueWatch(connection, "other")).queues] == ["orcd.demo"]


def test_a_count_that_failed_begins_anew(
    client: Client, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.submit(prompt="x", model="demo")
    watch = QueueWatch(connection, "w")
    watch.look()
    monkeypatch.setattr(connection, "expire", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        watch.look()
    monkeypatch.undo()
    assert not watch.is_counting
    connection.delete(schema.COUNTING)
    assert counted(watch).queues[0].waiting == 1


def test_figures_that_cannot_be_read_count_as_none(connection: redis.Redis) -> None:
    connection.set(schema.COUNTING, "other")
    connection.set(schema.QUEUE_FIGURES, '{"queues": 5}')
    assert QueueWatch(connection, "w").look() is None
