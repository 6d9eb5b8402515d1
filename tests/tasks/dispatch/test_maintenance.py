"""What the clock and Redis say of a worker's jobs: leases, cancellations, deadlines, lost listeners, lost jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from orcd.client import Client
from orcd.errors import OrcdError
from orcd.request import parse
from orcd.store import schema
from orcd.store.job_store import Claim, JobStore, Message
from tasks.dispatch import maintenance as module
from tasks.dispatch.active_job import ActiveJob
from tasks.dispatch.maintenance import Maintenance, Termination
from tasks.dispatch.prompt_encoder import Prompt
from tasks.local.redis_server import RedisServer
from tests.orcd.job_writer import MakeStore
from tests.tasks.dispatch.byte_model import ENCODER, READY
from worker.settings import Settings

GAUGES = {"model": "demo", "ready": 1, "jobs": 0}
LEASE_MS = 60


def _settings(**fields: Any) -> Settings:
    return Settings(lease_ms=LEASE_MS, **fields)


def _begin(store: JobStore, job_id: str = "a", **fields: Any) -> ActiveJob:
    """Submit and claim a job."""
    store.submit(job_id, parse({"prompt": "old pond", **fields}))
    claim = store.claim([job_id])[0]
    assert isinstance(claim, Claim)
    request = claim.request
    assert not isinstance(request, OrcdError)
    prompt: Prompt = ENCODER.encode(request, READY)
    return ActiveJob(claim, prompt, "demo", lambda outcome: None)


@pytest.fixture
def store(make_store: MakeStore) -> JobStore:
    return make_store(lease_ms=LEASE_MS)


@pytest.fixture
def published() -> list[Message]:
    return []


@pytest.fixture
def make_maintenance(store: JobStore, published: list[Message]) -> Iterator[Callable[..., Maintenance]]:
    """Maintenance of the one worker, closed at the end."""
    made: list[Maintenance] = []

    def make(**fields: Any) -> Maintenance:
        made.append(Maintenance(store, _settings(**fields), "worker-1", published.append))
        return made[-1]

    yield make
    for each in made:
        each.close()


def _termination(terminations: list[Termination]) -> tuple[str, str]:
    """Job and code of the only termination."""
    (termination,) = terminations
    assert termination.error is not None
    return termination.job_id, termination.error.code


def _wait_for_terminations(maintenance: Maintenance, *jobs: ActiveJob) -> list[Termination]:
    """Run it as the job runner does until it says something."""
    end = time.monotonic() + 5
    while not (terminations := maintenance.run(jobs, GAUGES)):
        assert time.monotonic() < end, "no termination"
        time.sleep(0.01)
    return terminations


def test_a_job_outlives_its_lease_many_times_over(
    store: JobStore, make_store: MakeStore, make_maintenance: Callable[..., Maintenance], published: list[Message]
) -> None:
    job, maintenance = _begin(store), make_maintenance()
    end = time.monotonic() + 10 * LEASE_MS / 1000
    while time.monotonic() < end:
        assert maintenance.run([job], GAUGES) == []
        assert make_store("worker-2").claim(["a"])[0] == "busy"
        time.sleep(0.005)
    assert published == []


def test_a_job_that_somebody_else_has_taken_is_dropped_without_an_error(
    store: JobStore, make_store: MakeStore, make_maintenance: Callable[..., Maintenance]
) -> None:
    job = _begin(store)
    time.sleep(2 * LEASE_MS / 1000)
    assert isinstance(make_store("worker-2").claim(["a"])[0], Claim)
    assert make_maintenance().run([job], GAUGES) == [Termination("a", None)]


def test_a_lost_job_goes_back_to_the_queue_and_is_published(
    store: JobStore, make_maintenance: Callable[..., Maintenance], published: list[Message], connection: redis.Redis
) -> None:
    _begin(store, "lost", priority=2, model="poet")
    time.sleep(2 * LEASE_MS / 1000)
    maintenance = make_maintenance()
    assert maintenance.run([], GAUGES) == []
    assert published == [Message("lost", "orcd.poet", 2, lease_lost=True)]
    assert connection.hget(schema.job_key("lost"), "state") == b"queued"


def test_a_deadline_that_passes_while_the_job_runs_ends_it(
    store: JobStore, make_maintenance: Callable[..., Maintenance]
) -> None:
    job, maintenance = _begin(store, deadline_s=0.05), make_maintenance()
    assert maintenance.run([job], GAUGES) == []
    assert _termination(_wait_for_terminations(maintenance, job)) == ("a", "EXPIRED")


def test_a_time_limit_ends_a_job_and_names_the_limit(
    store: JobStore, make_maintenance: Callable[..., Maintenance], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, maintenance = _begin(store), make_maintenance(job_time_limit_s=7)
    started_ms = job.claim.started_ms
    monkeypatch.setattr(ActiveJob, "now_ms", lambda _: started_ms + 7000)
    assert maintenance.run([job], GAUGES) == []
    monkeypatch.setattr(ActiveJob, "now_ms", lambda _: started_ms + 7001)
    (termination,) = maintenance.run([job], GAUGES)
    assert termination.error is not None
    assert (termination.error.code, termination.error.message) == ("INFERENCE_TIMEOUT", "the job ran longer than 7 s")


def test_a_cancellation_arrives_over_the_control_channel_for_jobs_that_are_here(
    store: JobStore, make_maintenance: Callable[..., Maintenance], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    maintenance, jobs = make_maintenance(), [_begin(store, "a"), _begin(store, "b")]
    assert maintenance.run(jobs, GAUGES) == []
    monkeypatch.setattr(store, "renew", lambda _: {})  # which would see the flag
    with Client(redis_url) as client:
        client.cancel("b")
    store.redis.publish(schema.CONTROL, '{"cancel": "elsewhere"}')
    assert _termination(_wait_for_terminations(maintenance, *jobs)) == ("b", "CANCELLED")
    assert maintenance.run(jobs, GAUGES) == []


def test_a_cancellation_that_nobody_heard_is_found_by_its_flag(
    store: JobStore, make_maintenance: Callable[..., Maintenance], redis_url: str
) -> None:
    job = _begin(store)
    with Client(redis_url) as client:
        client.cancel("a")  # before anybody listens
    assert _termination(make_maintenance().run([job], GAUGES)) == ("a", "CANCELLED")


def test_a_job_that_wants_a_listener_ends_when_it_has_had_none_for_a_while(
    store: JobStore, make_maintenance: Callable[..., Maintenance], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DISCONNECT_AFTER_S", 0.05)
    jobs = [_begin(store, "a", on_disconnect="cancel"), _begin(store, "b")]
    watch = make_maintenance()
    assert watch.run(jobs, GAUGES) == []
    time.sleep(0.06)
    jobs[0].last_listened = time.monotonic()
    assert watch.run(jobs, GAUGES) == []
    terminations = _wait_for_terminations(watch, *jobs)
    assert _termination(terminations) == ("a", "CANCELLED")
    assert terminations[0].error is not None
    assert "nobody listened" in terminations[0].error.message


def test_the_heartbeat_carries_the_gauges_and_goes_when_the_worker_does(
    make_maintenance: Callable[..., Maintenance], connection: redis.Redis
) -> None:
    watch = make_maintenance()
    watch.run([], GAUGES | {"jobs": 3})
    assert connection.zrange(schema.WORKERS, 0, -1) == [b"worker-1"]
    assert connection.hgetall(schema.worker_key("worker-1")) == {b"model": b"demo", b"ready": b"1", b"jobs": b"3"}
    watch.close()
    assert connection.keys("orcd:worker*") == []


def test_a_heartbeat_takes_workers_off_the_list_that_have_long_been_silent(
    make_maintenance: Callable[..., Maintenance], connection: redis.Redis
) -> None:
    now_ms = time.time_ns() // 1_000_000
    connection.zadd(schema.WORKERS, {"dead": now_ms - 61_000, "alive": now_ms - 30_000})
    make_maintenance().run([], GAUGES)
    assert connection.zrange(schema.WORKERS, 0, -1) == [b"alive", b"worker-1"]


def test_chores_wait_for_their_time(
    store: JobStore, make_maintenance: Callable[..., Maintenance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job runner runs maintenance ten times a second; Redis is not asked as often."""
    reaped: list[bool] = []
    monkeypatch.setattr(store, "reap", lambda: reaped.append(True) or [])
    watch = make_maintenance()
    for _ in range(20):
        watch.run([], GAUGES)
    assert len(reaped) == 1


def test_every_key_has_a_time_to_live(
    store: JobStore, make_maintenance: Callable[..., Maintenance], connection: redis.Redis
) -> None:
    _begin(store, "lost")
    job = _begin(store, "held")
    watch = make_maintenance()
    time.sleep(2 * LEASE_MS / 1000)
    store.submit("waiting", parse({"prompt": "x"}))
    watch.run([job], GAUGES)
    keys: Any = connection.keys("*")
    assert {b"orcd:{held}:job", b"orcd:running", b"orcd:queued", b"orcd:workers"} <= set(keys)
    assert [key for key in keys if connection.ttl(key) < 0] == []


def test_maintenance_that_began_without_redis_hears_cancellations_once_it_is_back(redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.url, socket_timeout=1) as connection:
        store = JobStore(connection, owner="worker-1", model="demo", lease_ms=60_000, ttl_s=600)
        job = _begin(store)
        watch = Maintenance(store, Settings(), "worker-1", lambda _: None)
        redis_server.kill()
        with pytest.raises(redis.RedisError):
            watch.run([job], GAUGES)
        redis_server.start()
        assert watch.run([job], GAUGES) == []
        assert connection.publish(schema.CONTROL, '{"cancel": "a"}') == 1
        assert _termination(_wait_for_terminations(watch, job)) == ("a", "CANCELLED")
        redis_server.kill()
        watch.close()  # is no reason to fail
