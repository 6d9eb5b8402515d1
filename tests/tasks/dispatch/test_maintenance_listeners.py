"""A job that wants a listener ends when none was seen for a while, and for no other reason (F12)."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import redis

from orcd.client import Client
from orcd.store import schema
from orcd.store.job_store import JobStore
from tasks.dispatch import maintenance as module
from tests.orcd.job_record import Ears
from tests.tasks.dispatch.maintenance_scene import MaintenanceScene, only


class Clock:
    """The monotonic clock of maintenance; one second is one look."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock)
    return clock


@pytest.fixture
def scene(store: JobStore, clock: Clock) -> MaintenanceScene:
    return MaintenanceScene(store)


def look(scene: MaintenanceScene, clock: Clock, times: int) -> list[Any]:
    """Look so many times, a second apart; what the job runner is told."""
    told = []
    for _ in range(times):
        clock.now += 1.0
        told += scene.run()
    return told


def test_a_job_that_wants_a_listener_ends_when_it_has_had_none_for_ten_seconds(
    scene: MaintenanceScene, clock: Clock
) -> None:
    lease = scene.begin("a", on_disconnect="cancel").claim.lease
    scene.begin("b")
    assert look(scene, clock, 11) == []
    told = look(scene, clock, 1)
    assert only(told) == ("a", "CANCELLED", "nobody listened any more")
    assert told[0].lease == lease


def test_a_client_that_listens_keeps_a_job_that_says_nothing(
    scene: MaintenanceScene, clock: Clock, connection: redis.Redis
) -> None:
    """It may wait in the engine, or the engine may be loading its model again."""
    scene.begin("a", on_disconnect="cancel")
    ears = Ears(connection, schema.events_channel("a"))
    assert look(scene, clock, 60) == []
    ears.close()
    assert look(scene, clock, 11) == []
    assert only(look(scene, clock, 1))[0] == "a"


def test_whoever_comes_back_in_time_starts_the_count_anew(
    scene: MaintenanceScene, clock: Clock, connection: redis.Redis
) -> None:
    scene.begin("a", on_disconnect="cancel")
    for _ in range(3):
        assert look(scene, clock, 9) == []
        ears = Ears(connection, schema.events_channel("a"))
        assert look(scene, clock, 1) == []
        ears.close()


def test_a_pause_of_redis_is_no_absence(scene: MaintenanceScene, clock: Clock) -> None:
    scene.begin("a", on_disconnect="cancel")
    look(scene, clock, 5)
    clock.now += 60  # nobody was asked, so nobody was seen to be away
    assert scene.run() == []
    assert look(scene, clock, 3) == []


def test_clients_that_were_cut_off_with_us_may_come_back(
    scene: MaintenanceScene, clock: Clock, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.begin("a", on_disconnect="cancel")
    look(scene, clock, 9)

    def fail(*_channels: str) -> Any:
        raise redis.ConnectionError("away")

    with monkeypatch.context() as away:
        away.setattr(store.redis, "pubsub_numsub", fail)
        assert look(scene, clock, 20) == []
    clock.now += 2.0
    assert look(scene, clock, 10) == []


def test_a_client_of_ours_that_waits_for_a_silent_job_is_seen(
    store: JobStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LISTENERS_EVERY_S", 0.02)
    monkeypatch.setattr(module, "DISCONNECT_AFTER_S", 1.0)
    scene = MaintenanceScene(store)
    scene.begin("a", on_disconnect="cancel")
    with Client(redis_url) as client:
        events = client.events("a", timeout=3)
        with pytest.raises(TimeoutError):
            next(iter(_until_told(events, scene)))
    time.sleep(0.05)
    assert scene.wait_for_termination()[0] == "a"


def _until_told(events: Any, scene: MaintenanceScene) -> Any:
    """Follow the events while maintenance runs beside; fails if it wants the job to end."""
    over = threading.Event()
    told: list[Any] = []

    def run() -> None:
        while not over.wait(0.01):
            told.extend(scene.run())

    beside = threading.Thread(target=run)
    beside.start()
    try:
        yield from events
    finally:
        over.set()
        beside.join()
        assert told == []
