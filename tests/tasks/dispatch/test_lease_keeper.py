"""Leases are renewed on a thread of their own, which only its owner ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import Any

import pytest
import redis

from orcd.client import Client
from orcd.store import schema
from orcd.store.claim import Claim, Lease
from orcd.store.job_store import JobStore
from tasks.dispatch.active_job import Termination
from tasks.dispatch.lease_keeper import LeaseKeeper
from tests.conftest import wait_until
from tests.orcd.job_record import submit
from tests.orcd.job_writer import MakeStore

LEASE_MS = 400


class Scene:
    """A lease keeper with what it says."""

    def __init__(self, store: JobStore, lease_ms: int = LEASE_MS) -> None:
        self.store = store
        self.is_ready = True
        self.told: SimpleQueue[Termination] = SimpleQueue()
        self.failures: list[redis.RedisError] = []
        self.deaths: list[Any] = []
        self.keeper = LeaseKeeper(
            store,
            lease_ms,
            lambda: self.is_ready,
            self.told.put,
            self.failures.append,
            lambda *death: self.deaths.append(death),
        )

    def claim(self, job_id: str = "a") -> Lease:
        """Submit, claim and keep a job."""
        submit(self.store, job_id)
        claim = self.store.claim([job_id])[0]
        assert isinstance(claim, Claim)
        self.keeper.keep(job_id, claim.lease)
        return claim.lease


@pytest.fixture
def scene(make_store: MakeStore) -> Iterator[Scene]:
    scene = Scene(make_store(lease_ms=LEASE_MS))
    scene.keeper.start()
    yield scene
    scene.keeper.stop(5)
    assert scene.deaths == []


def test_a_job_outlives_its_lease_many_times_over(scene: Scene, make_store: MakeStore) -> None:
    scene.claim()
    other = make_store("worker-2", lease_ms=LEASE_MS)
    end = time.monotonic() + 10 * LEASE_MS / 1000
    while time.monotonic() < end:
        assert other.claim(["a"])[0] == "busy"
        time.sleep(0.02)
    assert scene.told.empty()


def test_no_pause_of_redis_costs_a_lease_though_another_worker_looks_all_the_time(make_store: MakeStore) -> None:
    """F13: twelve pauses longer than the lease POISONED 5 of 6 jobs though nobody had died."""
    lease_ms, job_ids = 400, [f"job-{number}" for number in range(6)]
    scene, other = Scene(make_store(lease_ms=lease_ms), lease_ms), make_store("worker-2", lease_ms=lease_ms)
    scene.keeper.start()
    for job_id in job_ids:
        scene.claim(job_id)
    for _ in range(12):
        scene.store.redis.client_pause(lease_ms + 100)
        end = time.monotonic() + (lease_ms + 150) / 1000
        while time.monotonic() < end:
            assert other.reap() == []
            assert other.claim(job_ids) == ["busy"] * 6
            time.sleep(0.01)
    scene.keeper.stop(5)
    assert scene.told.empty()
    assert {scene.store.redis.hget(schema.job_key(job_id), "attempt") for job_id in job_ids} == {b"1"}


def test_a_lease_that_was_dropped_is_renewed_no_more(scene: Scene, make_store: MakeStore) -> None:
    lease = scene.claim()
    scene.keeper.drop("a", lease)
    other = make_store("worker-2", lease_ms=LEASE_MS)
    wait_until(lambda: isinstance(other.claim(["a"])[0], Claim))
    assert scene.told.empty()


def test_dropping_an_earlier_lease_leaves_the_later_one(scene: Scene, make_store: MakeStore) -> None:
    earlier = scene.claim()
    scene.store.release({"a": earlier})
    later = scene.claim()
    scene.keeper.drop("a", earlier)
    time.sleep(2 * LEASE_MS / 1000)
    assert make_store("worker-2", lease_ms=LEASE_MS).claim(["a"])[0] == "busy"
    assert later != earlier


def test_a_job_that_somebody_else_has_taken_is_to_be_dropped_without_an_error(
    scene: Scene, make_store: MakeStore
) -> None:
    lease = scene.claim()
    scene.store.release({"a": lease})
    assert isinstance(make_store("worker-2").claim(["a"])[0], Claim)
    assert scene.told.get(timeout=60) == Termination("a", None, lease)


def test_a_cancellation_that_nobody_heard_is_found_by_its_flag(scene: Scene, redis_url: str) -> None:
    lease = scene.claim()
    with Client(redis_url) as client:
        client.cancel("a")
    told = scene.told.get(timeout=60)
    assert (told.job_id, told.lease, told.error and told.error.code) == ("a", lease, "CANCELLED")


def test_without_jobs_too_it_is_noted_that_the_worker_serves_its_queues(scene: Scene, connection: redis.Redis) -> None:
    wait_until(lambda: connection.zscore("orcd:served", "orcd.demo"))


def test_one_jobs_key_of_another_type_costs_no_other_its_lease(
    scene: Scene, make_store: MakeStore, connection: redis.Redis
) -> None:
    """F15."""
    scene.claim("bad")
    scene.claim("good")
    connection.delete(schema.job_key("bad"))
    connection.rpush(schema.job_key("bad"), "no", "record")
    assert scene.told.get(timeout=60).job_id == "bad"
    time.sleep(2 * LEASE_MS / 1000)
    assert make_store("worker-2", lease_ms=LEASE_MS).claim(["good"])[0] == "busy"


def test_redis_errors_of_every_kind_are_told_and_tried_again_soon_enough_for_the_lease(
    scene: Scene, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    renew = scene.store.renew
    errors = [redis.ConnectionError("away"), redis.ReadOnlyError("replica"), redis.ResponseError("OOM")]
    left = iter(errors)

    def failing(leases: dict[str, Lease], *, is_ready: bool) -> Any:
        for error in left:
            raise error
        return renew(leases, is_ready=is_ready)

    monkeypatch.setattr(scene.store, "renew", failing)
    wait_until(lambda: len(scene.failures) == 3)
    assert scene.failures == errors
    scene.claim()
    time.sleep(2 * LEASE_MS / 1000)
    assert make_store("worker-2", lease_ms=LEASE_MS).claim(["a"])[0] == "busy"


def test_it_stops_while_redis_is_away(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_leases: Any, **_options: Any) -> Any:
        raise redis.ConnectionError("away")

    monkeypatch.setattr(scene.store, "renew", fail)
    wait_until(lambda: scene.failures)
    start = time.monotonic()
    scene.keeper.stop(20)
    assert time.monotonic() - start < 10
    with pytest.raises(Empty):
        scene.told.get_nowait()


def test_it_notes_whether_the_worker_takes_jobs_now(scene: Scene) -> None:
    connection = scene.store.redis
    wait_until(lambda: connection.zcard(schema.READY) == 2)
    scene.is_ready = False

    def is_noted() -> bool:
        """In the next round; one that began before may still have said otherwise."""
        connection.delete(schema.READY, schema.SERVED)
        wait_until(lambda: connection.zcard(schema.SERVED) == 2)
        return bool(connection.zcard(schema.READY) == 0)

    wait_until(is_noted)


def test_a_worker_s_queues_are_served_from_its_start_on(make_store: MakeStore, connection: redis.Redis) -> None:
    """Whoever asked within the first third of a lease was told that no worker served the model."""
    scene = Scene(make_store(lease_ms=60_000), lease_ms=60_000)
    scene.keeper.start()
    wait_until(lambda: connection.zcard(schema.SERVED))
    scene.keeper.stop(5)
