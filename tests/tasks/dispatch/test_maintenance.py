"""What the clock and Redis say of a worker's jobs: limits, lost jobs, heartbeats."""

from __future__ import annotations

import time
from importlib.metadata import version
from itertools import pairwise
from os import getpid
from queue import SimpleQueue
from socket import gethostname
from typing import Any

import pytest
import redis
from kombu.exceptions import OperationalError

from orcd.events import Token
from orcd.monitoring.worker_registry import WorkerRegistry
from orcd.request import parse
from orcd.status import WorkerStatus
from orcd.store import schema
from orcd.store.enqueue import Message
from orcd.store.job_store import JobStore
from tasks.dispatch import maintenance as module
from tasks.dispatch.active_job import ActiveJob
from tasks.local.redis_server import RedisServer
from tests.conftest import wait_until
from tests.orcd.job_record import submit
from tests.orcd.job_writer import MakeStore
from tests.tasks.dispatch.byte_model import READY
from tests.tasks.dispatch.maintenance_scene import MaintenanceScene, only
from worker import contract

LEASE_MS = 60


@pytest.fixture
def store(make_store: MakeStore) -> JobStore:
    return make_store(lease_ms=LEASE_MS)


@pytest.fixture
def scene(store: JobStore) -> MaintenanceScene:
    return MaintenanceScene(store)


def test_a_lost_job_goes_back_to_the_queue_and_is_published(make_store: MakeStore, connection: redis.Redis) -> None:
    MaintenanceScene(make_store("worker-2", lease_ms=LEASE_MS)).begin("lost", priority=2, model="demo")
    time.sleep(2 * LEASE_MS / 1000)
    scene = MaintenanceScene(make_store())
    assert scene.run() == []
    assert scene.published == [Message("lost", "orcd.demo", 2, lease_lost=True)]
    assert connection.hget(schema.job_key("lost"), "state") == b"queued"


def test_a_deadline_that_passes_while_the_job_runs_ends_it_once(
    scene: MaintenanceScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadline_ms = scene.begin(deadline_s=60).claim.deadline_ms
    assert scene.run() == []
    monkeypatch.setattr(ActiveJob, "now_ms", lambda _: deadline_ms + 1)
    assert scene.wait_for_termination()[:2] == ("a", "EXPIRED")
    time.sleep(2 * module.TICK_S)
    assert scene.run() == [], "the job runner may be waiting for Redis; it need not hear it ten times a second"


@pytest.mark.parametrize(
    ("setting_s", "message_s", "limit_s"), [(7, None, 7), (0, 5.0, 5), (7, 5.0, 5), (7, 30.0, 7), (0, 0.5, 0.5)]
)
def test_the_shortest_time_limit_ends_a_job_and_is_named(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, setting_s: int, message_s: float | None, limit_s: float
) -> None:
    monkeypatch.setattr(module, "TICK_S", 0.0)
    scene = MaintenanceScene(store, job_time_limit_s=setting_s)
    started_ms = scene.begin(time_limit_s=message_s).claim.started_ms
    monkeypatch.setattr(ActiveJob, "now_ms", lambda _: started_ms + round(limit_s * 1000))
    assert scene.run() == []
    monkeypatch.setattr(ActiveJob, "now_ms", lambda _: started_ms + round(limit_s * 1000) + 1)
    assert only(scene.run()) == ("a", "INFERENCE_TIMEOUT", f"the job ran longer than {limit_s:g} s")


def test_a_job_without_a_time_limit_has_none(scene: MaintenanceScene, monkeypatch: pytest.MonkeyPatch) -> None:
    started_ms = scene.begin().claim.started_ms
    monkeypatch.setattr(ActiveJob, "now_ms", lambda _: started_ms + 10**9)
    assert scene.run() == []


def test_the_heartbeat_carries_the_gauges_and_goes_when_the_worker_does(
    scene: MaintenanceScene, connection: redis.Redis
) -> None:
    scene.begin()
    scene.run()
    assert connection.zrange(schema.WORKERS, 0, -1) == [b"worker-1"]
    (said,) = WorkerRegistry(connection).workers()
    assert (said.model, said.state, said.jobs, said.device) == ("demo", "loading", 1, "cpu")
    assert (said.host, said.pid, said.version) == (gethostname(), getpid(), version("orcd"))
    assert set(WorkerStatus.__struct_fields__) - {"name", "last_seen_ms", "silent_ms"} == {
        name.decode() for name in connection.hkeys(schema.worker_key("worker-1"))
    } - {"ready"}
    scene.maintenance.start()
    scene.maintenance.stop(60)
    assert connection.keys("orcd:worker*") == []


def test_a_change_of_state_is_told_before_the_next_heartbeat_is_due(
    scene: MaintenanceScene, connection: redis.Redis
) -> None:
    states = []
    for is_draining in (False, False, True):
        scene.observer.is_draining = is_draining
        scene.run()
        states.append(WorkerRegistry(connection).workers()[0].state)
    assert states == ["loading", "loading", "draining"]


def test_periodic_calls_wait_for_their_time(
    scene: MaintenanceScene, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread looks ten times a second; Redis is not asked as often."""
    reaped: list[bool] = []
    monkeypatch.setattr(store, "reap", lambda: reaped.append(True) or [])
    for now, times in ((1000.0, 1), (1000.0 + 0.9 * module.REAP_EVERY_S, 1), (1000.0 + module.REAP_EVERY_S, 2)):
        monkeypatch.setattr(module.time, "monotonic", lambda now=now: now)
        for _ in range(20):
            scene.run()
        assert len(reaped) == times


def test_every_key_has_a_time_to_live(scene: MaintenanceScene, store: JobStore, connection: redis.Redis) -> None:
    scene.begin("lost")
    scene.begin("held")
    time.sleep(2 * LEASE_MS / 1000)
    store.renew({})
    submit(store, "waiting", parse({"prompt": "x"}))
    scene.run()
    keys: Any = connection.keys("*")
    assert {b"orcd:{held}:job", b"orcd:queued", b"orcd:workers"} <= set(keys)
    assert [key for key in keys if connection.ttl(key) < 0] == []


def test_how_far_the_model_has_loaded_is_announced_when_it_changes(
    scene: MaintenanceScene, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[tuple[int, int | None]] = []
    monkeypatch.setattr(store, "announce_loading", lambda *load: announced.append(load))
    scene.run()
    for percent in (10, 10, 20):
        scene.observer.loads(contract.Load(percent, percent, 100, 900))
        scene.run()
        scene.run()
    assert announced == [(10, 900), (10, 900), (20, 900)]


def test_a_model_that_loads_in_a_moment_is_announced_too(
    scene: MaintenanceScene, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: SimpleQueue[int] = SimpleQueue()
    monkeypatch.setattr(store, "announce_loading", lambda percent, _: announced.put(percent))
    monkeypatch.setattr(module, "TICK_S", 60.0)
    scene.maintenance.start()
    scene.observer.loads(contract.Load(7, 7, 100))
    assert announced.get(timeout=60) == 7
    scene.maintenance.stop(5)


def test_a_call_that_failed_is_due_again_soon_and_keeps_no_other_from_its_turn(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, connection: redis.Redis
) -> None:
    """F15."""
    tried: list[float] = []

    def reap() -> list[Message]:
        tried.append(time.monotonic())
        raise redis.ResponseError("WRONGTYPE")

    monkeypatch.setattr(store, "reap", reap)
    scene = MaintenanceScene(store)
    while len(tried) < 4:
        scene.run()
        time.sleep(0.005)
    pauses = [later - earlier for earlier, later in pairwise(tried)]
    assert all(pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2), strict=True))
    assert min(pauses) < module.REAP_EVERY_S
    assert connection.exists(schema.worker_key("worker-1"))
    (said,) = scene.log_events()
    assert (said["doing"], said["cause"]) == ("reap", "ResponseError")


def test_a_message_that_cannot_be_published_is_kept_and_holds_up_no_other(
    scene: MaintenanceScene, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [Message(job_id, "orcd", 5, lease_lost=True) for job_id in ("bad", "good", "better")]
    found = iter([messages])
    monkeypatch.setattr(store, "reap", lambda: next(found, []))
    broken = {"bad"}

    def publish(message: Message) -> None:
        if message.job_id in broken:
            raise OSError("the broker is away")
        scene.published.append(message)

    monkeypatch.setattr(scene, "publish", publish)
    deadline = time.monotonic() + 60
    while len(scene.published) < 3 and time.monotonic() < deadline:
        scene.run()
        if len(scene.published) == 2:
            broken.clear()
        time.sleep(0.01)
    assert [message.job_id for message in scene.published] == ["good", "better", "bad"]


def test_a_queue_that_takes_no_message_is_tried_once_a_time_and_holds_up_no_other_queue(
    scene: MaintenanceScene, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    queues = ["orcd.broken"] * 3 + ["orcd"] + ["orcd.broken"] * 3 + ["orcd.demo"]
    messages = [Message(f"job-{number}", queue, 5) for number, queue in enumerate(queues)]
    monkeypatch.setattr(store, "reap", lambda: messages)
    tried: list[str] = []

    def publish(message: Message) -> None:
        if message.queue == "orcd.broken":
            tried.append(message.job_id)
            raise OperationalError from redis.ResponseError("WRONGTYPE ...")
        scene.published.append(message)

    monkeypatch.setattr(scene, "publish", publish)
    scene.run()
    assert [message.queue for message in scene.published] == ["orcd", "orcd.demo"]
    assert len(tried) == 1
    (said,) = scene.log_events()
    assert (said["doing"], said["cause"]) == ("reap", "OperationalError")


def test_its_thread_goes_on_while_redis_is_away(redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.url, socket_timeout=60) as connection:
        store = JobStore(connection, owner="worker-1", model="demo", lease_ms=60_000, ttl_s=600)
        scene = MaintenanceScene(store)
        redis_server.kill()
        scene.maintenance.start()
        time.sleep(0.3)
        redis_server.start()
        wait_until(lambda: connection.exists(schema.worker_key("worker-1")))
        scene.maintenance.stop(60)
        assert connection.keys("orcd:worker*") == []


def test_a_redis_that_fails_and_answers_again_is_told_to_the_observer(
    scene: MaintenanceScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.observer.ready(READY)
    monkeypatch.setattr(scene.store, "reap", lambda: raise_(redis.ReadOnlyError("a replica")))
    scene.run()
    assert scene.observer.problem == "Redis is away or refuses commands"
    monkeypatch.undo()
    wait_until(lambda: scene.run() == [] and scene.observer.problem == "")


def test_what_is_done_of_running_jobs_counts_in_the_workers_rate(
    scene: MaintenanceScene, connection: redis.Redis
) -> None:
    job, unbounded, resumed = scene.begin("a", max_tokens=4), scene.begin("b"), scene.begin("c", max_tokens=4)
    resumed._record(Token("ab", 1, [97, 98]))  # by an earlier owner
    for each in (job, unbounded):
        each.add()
        each.process(contract.TokenOutput(each.request_id, 0, tuple(b"frog"[:2])))
    assert (job.num_tokens_out, unbounded.num_tokens_out) == (2, 2)
    parts: list[float] = []
    scene.observer.jobs_per_s = lambda num_done: parts.append(num_done) or 0.25  # type: ignore
    scene.run()
    assert parts == [0.5]
    (said,) = WorkerRegistry(connection).workers()
    assert said.jobs_per_s == 0.25


def test_what_is_in_the_queues_becomes_metrics_where_there_is_a_port_for_them(store: JobStore) -> None:
    with_port, without = MaintenanceScene(store, metrics_port=9090), MaintenanceScene(store)
    submit(store, "waits", parse({"prompt": "x", "model": "other"}))

    def pages() -> list[str]:
        with_port.run(), without.run()
        return [scene.observer.metrics.page().decode() for scene in (with_port, without)]

    wait_until(lambda: 'orcd_queue_waiting{queue="unserved"} 1.0' in pages()[0])
    assert "orcd_queue_waiting{" not in pages()[1]


def raise_(error: Exception) -> None:
    raise error
