"""A job that gets no token for the stall limit, though the engine works, is ended; nothing else counts as a stall."""

from __future__ import annotations

import pytest

from orcd.store.job_store import JobStore
from tasks.dispatch import maintenance as module
from tasks.dispatch.active_job import ActiveJob, Termination
from tests.tasks.dispatch.maintenance_scene import MaintenanceScene, only
from worker import contract

LIMIT_S = 5


class Scene(MaintenanceScene):
    """The engine speaks when the test says so; each second is one look."""

    def begin_in_engine(self, job_id: str = "a") -> ActiveJob:
        job = self.begin(job_id)
        assert job.add() is not None
        job.is_in_engine = True
        return job

    def pass_time(self, seconds: int, *, speaks: bool = True) -> list[Termination]:
        told: list[Termination] = []
        for _ in range(seconds):
            if speaks:
                self.engine_process.last_heard += 1.0
            told += self.run()
        return told


@pytest.fixture
def scene(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(module, "TICK_S", 0.0)
    return Scene(store, stall_limit_s=LIMIT_S)


def draw(job: ActiveJob, *ids: int) -> None:
    job.process(contract.TokenOutput(job.request_id, 0, ids))


def test_a_job_that_gets_no_token_in_time_is_ended_and_the_limit_is_named(scene: Scene) -> None:
    job = scene.begin_in_engine()
    assert scene.pass_time(1 + LIMIT_S) == []
    told = scene.pass_time(1)
    assert only(told) == ("a", "INFERENCE_TIMEOUT", "the engine gave the job no token for 5 s")
    assert told[0].concerns(job)
    draw(job, 65)
    assert not told[0].concerns(job), "one came while the job runner waited for Redis"


def test_a_token_starts_the_count_anew_also_one_whose_text_is_held_back(scene: Scene) -> None:
    slow, stalled = scene.begin_in_engine("slow"), scene.begin_in_engine("stalled")
    told = scene.pass_time(1)
    for _ in range(3):
        draw(slow, 0xE2)  # a third of a character
        told += scene.pass_time(LIMIT_S - 1)
    assert {each.job_id for each in told} == {"stalled"}
    assert stalled.num_drawn == 0


def test_a_silent_engine_is_in_a_long_step_or_hangs_which_is_no_stall(scene: Scene) -> None:
    scene.begin_in_engine()
    assert scene.pass_time(3) == []
    assert scene.pass_time(100, speaks=False) == []
    assert scene.pass_time(3) == []
    assert len(scene.pass_time(1)) == 1


def test_a_job_that_the_engine_does_not_have_waits_for_its_restart(scene: Scene) -> None:
    job = scene.begin_in_engine()
    assert scene.pass_time(5) == []
    job.is_in_engine = False
    assert scene.pass_time(100) == []
    job.is_in_engine = True
    assert scene.pass_time(LIMIT_S + 1) == []
    assert len(scene.pass_time(1)) == 1


def test_it_is_said_once_a_limit_until_the_job_is_gone(scene: Scene) -> None:
    scene.begin_in_engine()
    assert len(scene.pass_time(1 + 4 * (LIMIT_S + 1))) == 4


def test_without_the_setting_there_is_no_limit(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK_S", 0.0)
    scene = Scene(store)
    scene.begin_in_engine()
    assert scene.pass_time(1000) == []
