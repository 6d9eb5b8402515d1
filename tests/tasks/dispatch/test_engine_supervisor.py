"""What becomes of an engine that dies, hangs or cannot be started, and of its jobs; the process is played."""

from __future__ import annotations

import io
import json
import threading
import time
from typing import Any

import pytest

from orcd.request import parse
from orcd.store.job_store import Claim
from tasks.dispatch.active_job import ActiveJob
from tasks.dispatch.engine_supervisor import MAX_FAILED_STARTS, EngineSupervisor
from tasks.observe.observer import Observer
from tests.tasks.dispatch.byte_model import ENCODER, READY
from worker.contract import Fatal
from worker.log import EventLog
from worker.settings import Settings

MAX_ATTEMPTS = 3


class Scene:
    """A supervisor, what it did to the process, and what it logged."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.stopping = threading.Event()
        self._log = io.StringIO()
        self.supervisor = EngineSupervisor(
            Settings(device="cpu", max_attempts=MAX_ATTEMPTS, engine_step_timeout_s=5),
            Observer(EventLog("json", "w", self._log), "w", "m"),
            lambda event: None,
            lambda: self.done.append("lost"),
            self.stopping,
        )
        for name in ("restart", "kill"):
            monkeypatch.setattr(self.supervisor.process, name, lambda name=name: self.done.append(name))
        monkeypatch.setattr(self.stopping, "wait", lambda seconds: self.done.append(f"wait {seconds}"))

    def errors(self) -> list[dict[str, Any]]:
        """The errors logged so far."""
        events = [json.loads(line) for line in self._log.getvalue().splitlines()]
        return [event for event in events if event["level"] == "error"]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def job(attempt: int = 1) -> ActiveJob:
    request = parse({"prompt": "old pond"})
    claim = Claim("j", request, attempt, attempt, 1000, 1200, None, 1200, 0, False, ())
    return ActiveJob(claim, ENCODER.encode(request, READY), "m", lambda outcome: None)


def test_a_first_start_that_ends_well_leaves_the_engines_limits(scene: Scene) -> None:
    engine = scene.supervisor
    assert not engine.is_up and not engine.loaded.is_set()
    engine.ready(READY)
    assert engine.is_up and engine.loaded.is_set()
    assert (engine.limits, engine.fatal) == (READY, None)


@pytest.mark.parametrize(
    ("fatal", "code", "message"),
    [
        (Fatal("MODEL_LOAD_FAILED", "no such file"), "MODEL_LOAD_FAILED", "no such file"),
        (Fatal("A_CODE_OF_TOMORROW", "odd"), "INTERNAL", "odd"),
        (None, "ENGINE_LOST", "the engine ended with -9 while it loaded the model"),
    ],
)
def test_a_first_start_that_fails_is_not_tried_again_and_leaves_its_error(
    scene: Scene, fatal: Fatal | None, code: str, message: str
) -> None:
    engine = scene.supervisor
    if fatal is not None:
        engine.failed(fatal)
    engine.exited(-9, [])
    assert engine.loaded.is_set()
    assert engine.limits is None
    assert engine.fatal is not None
    assert (engine.fatal.code, engine.fatal.message) == (code, message)
    assert scene.done == []
    assert scene.errors() == [], "whoever waits for the first start says it"


def test_an_engine_that_dies_later_is_restarted_and_its_error_logged(scene: Scene) -> None:
    scene.supervisor.ready(READY)
    scene.supervisor.failed(Fatal("CUDA_ERROR", "matmul"))
    scene.supervisor.exited(1, [])
    assert not scene.supervisor.is_up
    assert scene.done == ["restart"]
    assert [error["code"] for error in scene.errors()] == ["CUDA_ERROR", "ENGINE_LOST"]


def test_starts_that_fail_one_after_the_other_are_tried_ever_later_and_then_given_up(scene: Scene) -> None:
    scene.supervisor.ready(READY)
    for _ in range(MAX_FAILED_STARTS + 1):
        scene.supervisor.exited(1, [])
    assert scene.done == ["restart", "wait 1.0", "restart", "wait 2.0", "restart", "lost"]


def test_a_start_that_ends_well_makes_earlier_failures_forgotten(scene: Scene) -> None:
    for _ in range(MAX_FAILED_STARTS + 1):
        scene.supervisor.ready(READY)
        scene.supervisor.exited(1, [])
    assert scene.done == ["restart"] * (MAX_FAILED_STARTS + 1)


def test_an_engine_that_ends_because_the_worker_stops_is_left_at_that(scene: Scene) -> None:
    scene.supervisor.ready(READY)
    scene.stopping.set()
    scene.supervisor.exited(0, [job()])
    assert scene.done == []
    assert scene.errors() == []


def test_a_job_that_was_there_too_often_when_the_engine_died_is_given_up(scene: Scene) -> None:
    early, late = job(attempt=1), job(attempt=MAX_ATTEMPTS)
    scene.supervisor.ready(READY)
    scene.supervisor.exited(1, [early, late])
    assert not early.ended
    assert late.result.error is not None
    assert late.result.error.code == "POISONED"
    for _ in range(MAX_ATTEMPTS - 1):
        assert not early.ended
        scene.supervisor.ready(READY)
        scene.supervisor.exited(1, [early])
    assert early.ended


def test_an_engine_that_says_nothing_for_too_long_is_killed(scene: Scene) -> None:
    engine = scene.supervisor
    engine.process.last_heard = time.monotonic() - 6
    engine.kill_if_hung()
    assert scene.done == [], "one that loads a model may take its time"
    engine.ready(READY)
    engine.process.last_heard = time.monotonic() - 4
    engine.kill_if_hung()
    assert scene.done == []
    engine.process.last_heard = time.monotonic() - 6
    engine.kill_if_hung()
    assert scene.done == ["kill"]
    (error,) = scene.errors()
    assert (error["code"], error["silent_s"]) == ("ENGINE_LOST", 6.0)
