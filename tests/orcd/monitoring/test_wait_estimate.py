"""How long a job will wait."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from orcd.client import Client
from orcd.monitoring.worker_registry import WorkerRegistry
from orcd.status import WaitEstimate
from tests.orcd.job_writer import MakeStore, claimed


@pytest.fixture
def registry(connection: redis.Redis) -> WorkerRegistry:
    return WorkerRegistry(connection)


def beat(registry: WorkerRegistry, name: str, **fields: Any) -> None:
    registry.beat(name, {"state": "ready", "model": "demo", **fields})


def test_what_is_more_urgent_or_older_is_ahead(client: Client, registry: WorkerRegistry, make_store: MakeStore) -> None:
    beat(registry, "w", jobs_per_s=0.5)
    for job_id, model, priority in (
        ("runs", "demo", 5), ("older", "demo", 5), ("any", None, 5), ("urgent-other", "b", 0), ("less", "demo", 9),
        ("job", "demo", 5), ("later", "demo", 5), ("urgent", "demo", 1),
    ):  # fmt: skip
        client.submit(prompt="x", job_id=job_id, model=model, priority=priority)
        time.sleep(0.002)
    claimed(make_store(), "runs")
    make_store().renew({})
    assert client.wait_estimate("job") == WaitEstimate(
        "job", "queued", 3, 6000, 0.5, "waiting for a free slot", True, ["demo"], None
    )
    assert client.wait_estimate("urgent").ahead == 0
    running = client.wait_estimate("runs")
    assert (running.state, running.ahead, running.starts_in_ms) == ("running", 0, None)


def test_a_deep_queue_is_counted_in_parts(client: Client) -> None:
    client.submit_many([{"prompt": "x", "priority": 1}] * 900)
    last = client.submit(prompt="x", priority=2)
    assert client.wait_estimate(last).ahead == 900


def test_without_a_worker_for_the_model_those_that_there_are_are_named(
    client: Client, registry: WorkerRegistry, make_store: MakeStore
) -> None:
    beat(registry, "w", jobs_per_s=0.5)
    beat(registry, "leaves", state="draining", model="c")
    make_store().renew({})
    found = client.wait_estimate(client.submit(prompt="x", model="qwen"))
    assert (found.served, found.starts_in_ms, found.models) == (False, None, ["demo"])
    assert found.reason == "no worker serves qwen; there are workers for demo"


def test_while_all_workers_load_it_tells_how_far_they_are(client: Client, registry: WorkerRegistry) -> None:
    job_id = client.submit(prompt="x")
    beat(registry, "w", state="loading", load_percent=45, jobs_per_s=3)
    loading = client.wait_estimate(job_id)
    assert (loading.served, loading.load_percent, loading.starts_in_ms) == (True, 45, None)
    beat(registry, "fast", jobs_per_s=2)
    ready = client.wait_estimate(job_id)
    assert (ready.load_percent, ready.starts_in_ms) == (None, 0)


def test_before_any_job_has_ended_nobody_knows(client: Client, registry: WorkerRegistry) -> None:
    beat(registry, "w")
    found = client.wait_estimate(client.submit(prompt="x"))
    assert (found.served, found.starts_in_ms, found.jobs_per_s) == (True, None, 0)
