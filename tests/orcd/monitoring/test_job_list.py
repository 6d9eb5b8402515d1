"""Jobs by their state, whatever is in Redis."""

from __future__ import annotations

import time

import pytest
import redis

from orcd.client import Client
from orcd.errors import InvalidRequest
from orcd.store import schema
from tests.orcd.job_writer import MakeStore, claimed


def ids(client: Client, state: str | None = None, model: str | None = None, limit: int = 1000) -> list[str]:
    return [job.job_id for job in client.jobs(state, model, limit)]


@pytest.fixture
def five(client: Client, make_store: MakeStore) -> None:
    """One job of each kind but expired, in the order of their submission."""
    store = make_store()
    for job_id, model in (("failed", "demo"), ("done", None), ("runs", "demo"), ("waits", None), ("other", "a:b")):
        client.submit(prompt="x", job_id=job_id, model=model, priority=3)
        time.sleep(0.002)
    claimed(store, "failed").fail("VRAM_OOM", "does not fit")
    time.sleep(0.002)
    done = claimed(store, "done")
    done.start()
    done.end()
    claimed(store, "runs").start()


def test_jobs_that_run_and_then_those_that_wait_are_listed_by_default(client: Client, five: None) -> None:
    runs, waits, other = client.jobs()
    assert (runs.job_id, runs.state, runs.model, runs.worker, runs.attempt) == (
        "runs",
        "running",
        "demo",
        "worker-1",
        1,
    )
    assert (waits.job_id, waits.state, waits.model, waits.priority) == ("waits", "queued", None, 3)
    assert (other.job_id, other.model, other.started_ms, other.outcome) == ("other", "a:b", None, "")
    assert runs.created_ms <= (runs.started_ms or 0)


def test_ended_jobs_are_found_by_their_state_and_told_with_their_outcome(client: Client, five: None) -> None:
    assert [(job.job_id, job.outcome) for job in client.jobs("failed")] == [("failed", "VRAM_OOM")]
    assert [(job.job_id, job.outcome) for job in client.jobs("succeeded")] == [("done", "length")]
    client.cancel("waits")
    time.sleep(0.002)
    client.cancel("other")
    assert ids(client, "cancelled") == ["other", "waits"], "the last one first"
    assert ids(client, "cancelled", limit=1) == ["other"]


def test_a_model_has_the_jobs_that_ask_for_it_or_run_on_it(client: Client, five: None) -> None:
    assert ids(client, model="demo") == ["runs"]
    assert ids(client, model="a:b") == ["other"]
    assert ids(client, "succeeded", "demo") == ["done"], "it asked for any"


def test_only_the_first_of_many_are_kept_and_each_once(client: Client) -> None:
    client.submit_many([{"prompt": "x"}] * 700, [f"job-{number:03}" for number in range(700)])
    assert len(ids(client)) == len(set(ids(client))) == 700
    oldest = min(job.created_ms for job in client.jobs())
    assert client.jobs(limit=3)[0].created_ms == oldest
    assert len(ids(client, limit=3)) == 3


def test_what_cannot_be_read_is_left_out(client: Client, connection: redis.Redis) -> None:
    client.submit_many([{"prompt": "x"}] * 3, ["whole", "odd", "gone"])
    connection.hset(schema.job_key("odd"), "created_ms", "yesterday")
    connection.set(schema.job_key("gone"), "x")
    assert ids(client) == ["whole"]


def test_wrong_arguments_are_named(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="state: must be one of queued, running"):
        client.jobs("waiting")
    with pytest.raises(InvalidRequest, match="limit: "):
        client.jobs(limit=0)
