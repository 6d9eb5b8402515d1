"""What the clock and Redis say of a worker's jobs: leases, cancellations, deadlines, lost listeners, lost jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from tasks import schema, upkeep
from tasks.client import Client
from tasks.generation import Generation
from tasks.job import Claim, JobStore, Message
from tasks.prompt import Prompt
from tasks.redis_server import RedisServer
from tasks.request import parse
from tasks.upkeep import Upkeep, Verdict
from tests.tasks.byte_model import ENCODER, READY
from tests.tasks.conftest import MakeStore
from worker.errors import OrcdError
from worker.settings import Settings

GAUGES = {"model": "demo", "ready": 1, "jobs": 0}
LEASE_MS = 60


def _settings(**fields: Any) -> Settings:
    return Settings(lease_ms=LEASE_MS, **fields)


def _begin(store: JobStore, job_id: str = "a", **fields: Any) -> Generation:
    """Submit and claim a job."""
    store.submit(job_id, parse({"prompt": "old pond", **fields}))
    claim = store.claim([job_id])[0]
    assert isinstance(claim, Claim)
    request = claim.request
    assert not isinstance(request, OrcdError)
    prompt: Prompt = ENCODER.encode(request, READY)
    return Generation(claim, prompt, "demo")


@pytest.fixture
def store(make_store: MakeStore) -> JobStore:
    return make_store(lease_ms=LEASE_MS)


@pytest.fixture
def published() -> list[Message]:
    return []


@pytest.fixture
def make_upkeep(store: JobStore, published: list[Message]) -> Iterator[Callable[..., Upkeep]]:
    """Upkeeps of the one worker, closed at the end."""
    made: list[Upkeep] = []

    def make(**fields: Any) -> Upkeep:
        made.append(Upkeep(store, _settings(**fields), "worker-1", published.append))
        return made[-1]

    yield make
    for each in made:
        each.close()


def _verdict(verdicts: list[Verdict]) -> tuple[str, str]:
    """Job and code of the only verdict."""
    (verdict,) = verdicts
    assert verdict.error is not None
    return verdict.job_id, verdict.error.code


def _wait_for_verdicts(upkeep: Upkeep, *jobs: Generation) -> list[Verdict]:
    """Run it as the desk does until it says something."""
    end = time.monotonic() + 5
    while not (verdicts := upkeep.run(jobs, GAUGES)):
        assert time.monotonic() < end, "no verdict"
        time.sleep(0.01)
    return verdicts


def test_a_job_outlives_its_lease_many_times_over(
    store: JobStore, make_store: MakeStore, make_upkeep: Callable[..., Upkeep], published: list[Message]
) -> None:
    job, upkeep = _begin(store), make_upkeep()
    end = time.monotonic() + 10 * LEASE_MS / 1000
    while time.monotonic() < end:
        assert upkeep.run([job], GAUGES) == []
        assert make_store("worker-2").claim(["a"])[0] == "busy"
        time.sleep(0.005)
    assert published == []


def test_a_job_that_somebody_else_has_taken_is_dropped_without_an_error(
    store: JobStore, make_store: MakeStore, make_upkeep: Callable[..., Upkeep]
) -> None:
    job = _begin(store)
    time.sleep(2 * LEASE_MS / 1000)
    assert isinstance(make_store("worker-2").claim(["a"])[0], Claim)
    assert make_upkeep().run([job], GAUGES) == [Verdict("a", None)]


def test_a_lost_job_goes_back_to_the_queue_and_is_published(
    store: JobStore, make_upkeep: Callable[..., Upkeep], published: list[Message], connection: redis.Redis
) -> None:
    _begin(store, "lost", priority=2, model="poet")
    time.sleep(2 * LEASE_MS / 1000)
    upkeep = make_upkeep()
    assert upkeep.run([], GAUGES) == []
    assert published == [Message("lost", "orcd.poet", 2, lease_lost=True)]
    assert connection.hget(schema.job_key("lost"), "state") == b"queued"


def test_a_deadline_that_passes_while_the_job_runs_ends_it(store: JobStore, make_upkeep: Callable[..., Upkeep]) -> None:
    job, upkeep = _begin(store, deadline_s=0.05), make_upkeep()
    assert upkeep.run([job], GAUGES) == []
    assert _verdict(_wait_for_verdicts(upkeep, job)) == ("a", "EXPIRED")


def test_a_time_limit_ends_a_job_and_names_the_limit(
    store: JobStore, make_upkeep: Callable[..., Upkeep], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, upkeep = _begin(store), make_upkeep(job_time_limit_s=7)
    started_ms = job.claim.started_ms
    monkeypatch.setattr(Generation, "now_ms", lambda _: started_ms + 7000)
    assert upkeep.run([job], GAUGES) == []
    monkeypatch.setattr(Generation, "now_ms", lambda _: started_ms + 7001)
    (verdict,) = upkeep.run([job], GAUGES)
    assert verdict.error is not None
    assert (verdict.error.code, verdict.error.message) == ("INFERENCE_TIMEOUT", "the job ran longer than 7 s")


def test_a_cancellation_arrives_over_the_control_channel_for_jobs_that_are_here(
    store: JobStore, make_upkeep: Callable[..., Upkeep], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upkeep, jobs = make_upkeep(), [_begin(store, "a"), _begin(store, "b")]
    assert upkeep.run(jobs, GAUGES) == []
    monkeypatch.setattr(store, "renew", lambda _: {})  # which would see the flag
    with Client(redis_url) as client:
        client.cancel("b")
    store.redis.publish(schema.CONTROL, '{"cancel": "elsewhere"}')
    assert _verdict(_wait_for_verdicts(upkeep, *jobs)) == ("b", "CANCELLED")
    assert upkeep.run(jobs, GAUGES) == []


def test_a_cancellation_that_nobody_heard_is_found_by_its_flag(
    store: JobStore, make_upkeep: Callable[..., Upkeep], redis_url: str
) -> None:
    job = _begin(store)
    with Client(redis_url) as client:
        client.cancel("a")  # before the upkeep listens
    assert _verdict(make_upkeep().run([job], GAUGES)) == ("a", "CANCELLED")


def test_a_job_that_wants_a_listener_ends_when_it_has_had_none_for_a_while(
    store: JobStore, make_upkeep: Callable[..., Upkeep], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "DISCONNECT_AFTER_S", 0.05)
    jobs = [_begin(store, "a", on_disconnect="cancel"), _begin(store, "b")]
    watch = make_upkeep()
    assert watch.run(jobs, GAUGES) == []
    time.sleep(0.06)
    jobs[0].last_listened = time.monotonic()
    assert watch.run(jobs, GAUGES) == []
    verdicts = _wait_for_verdicts(watch, *jobs)
    assert _verdict(verdicts) == ("a", "CANCELLED")
    assert verdicts[0].error is not None
    assert "nobody listened" in verdicts[0].error.message


def test_the_heartbeat_carries_the_gauges_and_goes_when_the_worker_does(
    make_upkeep: Callable[..., Upkeep], connection: redis.Redis
) -> None:
    watch = make_upkeep()
    watch.run([], GAUGES | {"jobs": 3})
    assert connection.zrange(schema.WORKERS, 0, -1) == [b"worker-1"]
    assert connection.hgetall(schema.worker_key("worker-1")) == {b"model": b"demo", b"ready": b"1", b"jobs": b"3"}
    watch.close()
    assert connection.keys("orcd:worker*") == []


def test_a_heartbeat_takes_workers_off_the_list_that_have_long_been_silent(
    make_upkeep: Callable[..., Upkeep], connection: redis.Redis
) -> None:
    now_ms = time.time_ns() // 1_000_000
    connection.zadd(schema.WORKERS, {"dead": now_ms - 61_000, "alive": now_ms - 30_000})
    make_upkeep().run([], GAUGES)
    assert connection.zrange(schema.WORKERS, 0, -1) == [b"alive", b"worker-1"]


def test_chores_wait_for_their_time(
    store: JobStore, make_upkeep: Callable[..., Upkeep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The desk runs upkeep ten times a second; Redis is not asked as often."""
    reaped: list[bool] = []
    monkeypatch.setattr(store, "reap", lambda: reaped.append(True) or [])
    watch = make_upkeep()
    for _ in range(20):
        watch.run([], GAUGES)
    assert len(reaped) == 1


def test_every_key_has_a_time_to_live(
    store: JobStore, make_upkeep: Callable[..., Upkeep], connection: redis.Redis
) -> None:
    _begin(store, "lost")
    job = _begin(store, "held")
    watch = make_upkeep()
    time.sleep(2 * LEASE_MS / 1000)
    store.submit("waiting", parse({"prompt": "x"}))
    watch.run([job], GAUGES)
    keys: Any = connection.keys("*")
    assert {b"orcd:{held}:job", b"orcd:running", b"orcd:queued", b"orcd:workers"} <= set(keys)
    assert [key for key in keys if connection.ttl(key) < 0] == []


def test_an_upkeep_that_began_without_redis_hears_cancellations_once_it_is_back(redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.url, socket_timeout=1) as connection:
        store = JobStore(connection, owner="worker-1", model="demo", lease_ms=60_000, ttl_s=600)
        job = _begin(store)
        watch = Upkeep(store, Settings(), "worker-1", lambda _: None)
        redis_server.kill()
        with pytest.raises(redis.RedisError):
            watch.run([job], GAUGES)
        redis_server.start()
        assert watch.run([job], GAUGES) == []
        assert connection.publish(schema.CONTROL, '{"cancel": "a"}') == 1
        assert _verdict(_wait_for_verdicts(watch, job)) == ("a", "CANCELLED")
        redis_server.kill()
        watch.close()  # is no reason to fail
