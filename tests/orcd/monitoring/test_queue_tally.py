"""What is in the queues is counted in parts, whatever is in Redis."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from orcd.client import Client
from orcd.monitoring.queue_tally import QueueTally
from orcd.status import QueueStatus, WorkerStatus
from orcd.store import schema
from tests.orcd.job_writer import MakeStore, claimed


def tally(connection: redis.Redis, *workers: WorkerStatus, prefix: str = "") -> tuple[dict[str, QueueStatus], int]:
    """The queues by name, and the number of calls that it took."""
    script: Any = connection.register_script(schema.script("queues", prefix))
    counted, num_calls = QueueTally(), 0
    while counted.arguments:
        counted.add(script([], counted.arguments))
        num_calls += 1
    return {queue.queue: queue for queue in counted.queues(workers)}, num_calls


def worker(model: str, state: str = "ready", jobs_per_s: float = 0.0) -> WorkerStatus:
    return WorkerStatus(f"{model}-{state}", 0, 0, state=state, model=model, jobs_per_s=jobs_per_s)


def test_a_deep_queue_is_counted_in_many_short_calls(client: Client, connection: redis.Redis) -> None:
    client.submit_many([{"prompt": "x", "priority": number % 3, "model": "demo"} for number in range(2000)])
    queues, num_calls = tally(connection)
    assert queues["orcd.demo"].waiting == queues["orcd.demo"].messages == 2000
    assert queues["orcd.demo"].priorities == {0: 667, 1: 667, 2: 666}
    assert num_calls > 2000 / 200


def test_the_oldest_is_the_one_that_has_waited_longest(
    client: Client, connection: redis.Redis, make_store: MakeStore
) -> None:
    for job_id, ago_ms in (("a", 5_000), ("b", 90_000), ("c", 10_000), ("runs", 900_000)):
        client.submit(prompt="x", job_id=job_id)
        queued_ms = int(connection.hget(schema.job_key(job_id), "queued_ms") or 0)  # type: ignore[arg-type]
        connection.hset(schema.job_key(job_id), "queued_ms", queued_ms - ago_ms)
    claimed(make_store(), "runs")
    queue = tally(connection)[0]["orcd"]
    assert (queue.waiting, queue.running) == (3, 1)
    assert queue.oldest_ms is not None
    assert 90_000 <= queue.oldest_ms < 150_000


@pytest.mark.parametrize(("states", "num_workers"), [(["ready", "loading", ""], 3), (["draining", "unhealthy"], 0)])
def test_who_takes_no_more_jobs_serves_no_queue(connection: redis.Redis, states: list[str], num_workers: int) -> None:
    queues, _ = tally(connection, *(worker("a:b", state) for state in states))
    assert {name: queue.workers for name, queue in queues.items()} == (
        {"orcd": num_workers, "orcd.a%3Ab": num_workers} if num_workers else {}
    )


def test_a_model_s_workers_serve_its_queue_and_that_of_any_model(client: Client, connection: redis.Redis) -> None:
    client.submit(prompt="x", model="c")
    queues, _ = tally(connection, worker("a"), worker("a"), worker("b"))
    assert {name: queue.workers for name, queue in queues.items()} == {"orcd": 3, "orcd.a": 2, "orcd.b": 1, "orcd.c": 0}


def test_a_queue_drains_at_the_rate_of_its_workers(client: Client, connection: redis.Redis) -> None:
    client.submit_many([{"prompt": "x", "model": "a"}] * 4 + [{"prompt": "x"}] * 6 + [{"prompt": "x", "model": "c"}])
    queues, _ = tally(connection, worker("a", jobs_per_s=2), worker("b", jobs_per_s=1), worker("d"))
    assert {name: queue.drain_ms for name, queue in queues.items()} == {
        "orcd": 3333, "orcd.a": 4000, "orcd.b": 0, "orcd.c": None, "orcd.d": 0,
    }  # fmt: skip


def test_messages_in_a_queue_that_nobody_serves_are_seen_though_they_are_no_jobs_yet(connection: redis.Redis) -> None:
    connection.lpush("orcd.foreign:7", "x", "y")
    connection.lpush("orcd.foreign", "z")
    connection.lpush("celery", "of another application")
    queues, _ = tally(connection)
    assert list(queues) == ["orcd.foreign"]
    assert (queues["orcd.foreign"].messages, queues["orcd.foreign"].waiting) == (3, 0)


def test_what_cannot_be_read_is_left_out(client: Client, connection: redis.Redis) -> None:
    client.submit_many([{"prompt": "x"}] * 3, ["whole", "odd", "gone"])
    connection.hset(schema.job_key("odd"), "queue", "no queue of ours")
    connection.set(schema.job_key("gone"), "x")
    connection.zadd(schema.QUEUED, {"never-there": 5, "\xff": 6})
    connection.lpush("orcd.a b", "x")
    queues, _ = tally(connection)
    assert {name: queue.waiting for name, queue in queues.items()} == {"orcd": 1}


def test_a_job_of_version_1_is_in_the_queue_of_today(client: Client, connection: redis.Redis) -> None:
    client.submit(prompt="x", job_id="old")
    connection.hdel(schema.job_key("old"), "schema", "queued_ms")
    connection.hset(schema.job_key("old"), "queue", "celery")
    assert tally(connection)[0]["orcd"].waiting == 1


def test_a_prefix_is_no_part_of_a_queue_s_name(redis_url: str, connection: redis.Redis,
                                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("ORCD_KEY_PREFIX", "staging:")
    with Client(redis_url) as client:
        client.submit(prompt="x", model="demo")
        (queue,) = client.queues()
    assert (queue.queue, queue.waiting, queue.messages) == ("orcd.demo", 1, 1)
    assert tally(connection)[0] == {}
