"""What becomes of an engine that dies, hangs or cannot be started; the process is played."""

from __future__ import annotations

import io
import json
import threading
from typing import Any

import msgspec
import pytest

from tasks.dispatch.engine import engine_supervisor
from tasks.dispatch.engine.engine_process import EngineExit
from tasks.dispatch.engine.engine_supervisor import MAX_FAILED_STARTS, EngineSupervisor
from tasks.observe.observer import Observer
from tests.tasks.dispatch.byte_model import READY
from worker.contract import Fatal
from worker.log import EventLog
from worker.settings import Settings


class Scene:
    """A supervisor on a clock of the test's, what it did to the process, and what it logged."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(engine_supervisor.time, "monotonic", lambda: self.now)
        self.done: list[str] = []
        self.stopping = threading.Event()
        self._log = io.StringIO()
        self.supervisor = EngineSupervisor(
            Settings(device="cpu", engine_step_timeout_s=5, engine_start_timeout_s=60),
            Observer(EventLog("json", "w", self._log), "w", Settings(name="m", device="cpu")),
            lambda event: None,
            lambda: self.done.append("lost"),
            lambda name, error: None,
            self.stopping,
        )
        self._pid: int | None = 4321
        monkeypatch.setattr(type(self.supervisor.process), "pid", property(lambda _: self._pid))
        monkeypatch.setattr(self.supervisor.process, "kill", lambda: self.done.append("kill"))
        monkeypatch.setattr(self.supervisor.process, "restart", self._restart)

    def _restart(self) -> None:
        self._pid = 4321
        self.done.append("restart")

    def exit(self, code: int) -> bool:
        """The process ends; returns whether it was at work."""
        self._pid = None
        was_at_work = self.supervisor.exited(EngineExit(code, is_fault=True))
        self.supervisor.supervise(has_jobs=False)
        return was_at_work

    def wait(self, seconds: float, *, has_jobs: bool = True) -> None:
        """Time passes in which the engine says nothing."""
        self.now += seconds
        self.supervisor.supervise(has_jobs=has_jobs)

    def errors(self) -> list[dict[str, Any]]:
        """The errors logged so far."""
        events = [json.loads(line) for line in self._log.getvalue().splitlines()]
        return [event for event in events if event["level"] == "error"]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


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
    scene.exit(-9)
    assert engine.loaded.is_set()
    assert engine.limits is None
    assert engine.fatal is not None
    assert (engine.fatal.code, engine.fatal.message) == (code, message)
    assert scene.done == []
    assert scene.errors() == [], "whoever waits for the first start says it"


def test_an_engine_that_dies_later_is_restarted_and_its_error_logged(scene: Scene) -> None:
    scene.supervisor.ready(READY)
    scene.supervisor.failed(Fatal("CUDA_ERROR", "matmul"))
    scene.exit(1)
    assert not scene.supervisor.is_up
    assert scene.done == ["restart"]
    assert [error["code"] for error in scene.errors()] == ["CUDA_ERROR", "ENGINE_LOST"]


def test_starts_that_fail_one_after_the_other_are_tried_ever_later_and_then_given_up(scene: Scene) -> None:
    scene.supervisor.ready(READY)
    scene.exit(1)
    for pause_s in (1.0, 2.0):
        scene.exit(1)
        scene.wait(pause_s - 0.1)
        scene.done.append("waited")
        scene.wait(0.1)
    scene.exit(1)
    assert scene.done == ["restart", "waited", "restart", "waited", "restart", "lost"]
    scene.wait(1000)
    assert scene.done[-1] == "lost"


def test_a_start_that_ends_well_makes_earlier_failures_forgotten(scene: Scene) -> None:
    for _ in range(MAX_FAILED_STARTS + 1):
        scene.supervisor.ready(READY)
        scene.exit(1)
    assert scene.done == ["restart"] * (MAX_FAILED_STARTS + 1)


def test_an_engine_that_ends_because_the_worker_stops_is_left_at_that(scene: Scene) -> None:
    scene.supervisor.ready(READY)
    scene.stopping.set()
    scene.exit(0)
    assert scene.done == []
    assert scene.errors() == []


def test_only_an_engine_that_took_requests_died_at_work(scene: Scene) -> None:
    """F13: deaths while loading were charged to jobs."""
    scene.supervisor.ready(READY)
    assert scene.exit(1)
    assert not scene.exit(1)
    scene.wait(1)
    scene.supervisor.ready(READY)
    assert scene.exit(-9)
    scene.supervisor.ready(READY)
    scene.stopping.set()
    assert not scene.exit(1), "and none that was told to stop"


def test_an_engine_that_works_and_says_nothing_for_too_long_is_killed_once(scene: Scene) -> None:
    engine = scene.supervisor
    engine.process.last_heard = scene.now
    engine.ready(READY)
    scene.wait(4)
    assert scene.done == []
    scene.wait(2)
    scene.wait(1)
    assert scene.done == ["kill"]
    (error,) = scene.errors()
    assert (error["code"], error["silent_s"]) == ("ENGINE_LOST", 6.0)


def test_an_idle_engine_may_be_silent_between_two_heartbeats_and_no_longer(scene: Scene) -> None:
    scene.supervisor.process.last_heard = scene.now
    scene.supervisor.ready(READY)
    scene.wait(14, has_jobs=False)
    assert scene.done == []
    scene.wait(2, has_jobs=False)
    assert scene.done == ["kill"]


@pytest.mark.parametrize("says_something", [False, True])
def test_an_engine_that_hangs_while_it_is_loaded_again_is_killed_and_given_up_in_the_end(
    scene: Scene, says_something: bool
) -> None:
    """F17: it may say nothing, or repeat that it has read some percent."""
    engine = scene.supervisor
    engine.ready(READY)
    scene.exit(1)
    for _ in range(MAX_FAILED_STARTS):
        assert scene.done.pop() == "restart"
        engine.process.started_at = engine.process.last_heard = scene.now
        scene.wait(59)
        assert scene.done == []
        if says_something:
            engine.process.last_heard = scene.now
        scene.wait(2)
        assert scene.done == ["kill"]
        scene.done.clear()
        scene.exit(-9)
        scene.wait(5)
    assert scene.done == ["lost"]


def test_an_engine_that_hangs_at_its_first_load_is_killed_and_leaves_its_error(scene: Scene) -> None:
    engine = scene.supervisor
    engine.process.started_at = scene.now
    scene.wait(61, has_jobs=False)
    assert scene.done == ["kill"]
    scene.exit(-9)
    assert engine.loaded.is_set()
    assert engine.fatal is not None
    assert (engine.fatal.code, engine.fatal.message) == ("ENGINE_LOST", "the engine was not ready after 60 s")


def test_an_engine_that_comes_back_with_another_model_file_ends_the_worker(scene: Scene) -> None:
    scene.supervisor.ready(READY)
    scene.exit(1)
    scene.supervisor.ready(msgspec.structs.replace(READY, fingerprint="another-float32-cpu-1"))
    assert not scene.supervisor.is_up, "no job goes on under it"
    assert scene.done == ["restart", "lost"]
    assert scene.errors()[-1]["code"] == "MODEL_LOAD_FAILED"
