"""Which jobs are sent to the engine and taken out of it, when it dies under some; the process is played."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from orcd.request import parse
from tasks.dispatch import admission
from tasks.dispatch.active_job import ActiveJob
from tasks.dispatch.admission import Admission
from tasks.dispatch.engine.engine_process import EngineExit
from tasks.dispatch.engine.engine_supervisor import EngineSupervisor
from tasks.dispatch.output_batcher import OutputBatcher
from tasks.observe.observer import Observer
from tests.tasks.dispatch.byte_model import ENCODER, READY
from tests.tasks.dispatch.claims import claim
from worker.contract import Abort, Add, Request, TokenOutput
from worker.log import EventLog
from worker.settings import Settings


class Scene:
    """An engine that is up, what was sent to it, and the jobs of its worker."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_jobs: int) -> None:
        self.now = 1000.0
        monkeypatch.setattr(admission.time, "monotonic", lambda: self.now)
        self._log = io.StringIO()
        observer = Observer(EventLog("json", "w", self._log), "w", Settings(name="m", device="cpu"))
        self.engine = EngineSupervisor(
            Settings(device="cpu"),
            observer,
            lambda event: None,
            lambda: None,
            lambda name, error: None,
            threading.Event(),
        )
        self.sent: list[Request | str] = []  # and what was put, by name
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(self.engine.process, "send", self._send)
        self.start_run()
        self.engine.ready(READY)
        self.admission = Admission(self.engine, OutputBatcher(), observer, lambda job: self.sent.append(job.job_id))
        self.jobs = [self.job(f"j{i}") for i in range(num_jobs)]
        for job in self.jobs:
            self.admission.submit(job)
        self.sent.clear()

    def _send(self, request: Request) -> bool:
        self.sent.append(request)
        return True

    def start_run(self) -> None:
        """Frames go to another process from now on."""

        def put(request: Request, announce: Callable[[], None]) -> None:
            announce()
            self.sent.append(request)

        self.monkeypatch.setattr(self.engine.process, "_writer", SimpleNamespace(put=put))

    def job(self, job_id: str) -> ActiveJob:
        """One that was claimed and has not begun."""
        request = parse({"prompt": "old pond", "max_tokens": 40})
        begun = claim(request, job_id=job_id)
        return ActiveJob(begun, ENCODER.encode(request, READY), READY, lambda outcome: None)

    def die(self, *in_flight: ActiveJob, is_fault: bool = True) -> None:
        """The engine dies at work on these, and comes back."""
        died = EngineExit(-11 if is_fault else -9, is_fault, frozenset(job.request_id for job in in_flight))
        assert self.engine.exited(died)
        self.admission.engine_died(died, self.jobs)
        assert not any(job.is_in_engine for job in self.jobs), "the next engine has to be told of them"
        self.sent.clear()
        self.start_run()
        self.engine.ready(READY)
        for job in self.jobs:
            self.admission.submit(job)
        self.admission.update(self.jobs)

    def draw(self, job: ActiveJob, num_tokens: int = 1) -> None:
        """The engine draws tokens of a job."""
        job.process(TokenOutput(job.request_id, 0, (ord("a"),) * num_tokens))
        self.admission.advanced(job)

    def pass_place(self, *jobs: ActiveJob) -> None:
        """Jobs get clearly past where the engine died under them."""
        for job in jobs:
            self.draw(job, 10)
        self.now += 1
        for job in jobs:
            self.draw(job)

    def in_engine(self) -> list[str]:
        return [job.job_id for job in self.jobs if job.is_in_engine]

    def told(self) -> list[dict[str, Any]]:
        """The log events of the search so far."""
        events = [json.loads(line) for line in self._log.getvalue().splitlines()]
        return [event for event in events if event["event"].startswith("isolation")]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch, 6)


def test_only_the_jobs_in_flight_are_suspects_and_half_of_them_run_first(scene: Scene) -> None:
    """F13: a death was charged to every job of the worker."""
    scene.die(*scene.jobs[:4])
    assert scene.in_engine() == ["j0", "j1"]
    assert [request.request_id for request in scene.sent if isinstance(request, Add)] == [
        job.request_id for job in scene.jobs[:2]
    ]
    (event,) = scene.told()
    assert (event["level"], event["suspects"], event["group"]) == ("warning", 4, 2)


def test_those_that_are_cleared_leave_the_engine_before_the_others_enter_it(scene: Scene) -> None:
    a, b, c, d = scene.jobs[:4]
    scene.die(a, b, c, d)
    scene.pass_place(a, b)
    ids = [a.request_id, b.request_id]
    assert scene.admission.update(scene.jobs) == [a, b, c]
    assert scene.sent[2:] == [Abort(ids[0]), Abort(ids[1]), scene.sent[4]]
    assert scene.sent[4] == c.add()
    assert scene.in_engine() == ["j2"]
    scene.pass_place(c)
    scene.admission.update(scene.jobs)
    assert scene.in_engine() == ["j3"], "known by elimination"
    scene.pass_place(d)
    scene.admission.update(scene.jobs)
    assert scene.in_engine() == [f"j{i}" for i in range(6)]
    assert scene.told()[-1]["event"] == "isolation_end"
    scene.sent.clear()
    scene.admission.update(scene.jobs)
    assert scene.sent == [], "nothing has changed since"


def test_what_the_engine_still_says_of_a_job_that_was_taken_out_is_about_another_request(scene: Scene) -> None:
    a, b = scene.jobs[:2]
    scene.die(a, b)
    before = a.request_id
    scene.draw(a, 2)
    scene.pass_place(a)
    scene.admission.update(scene.jobs)
    assert a.request_id != before
    again = a.add()
    assert again is not None
    assert again.request_id == a.request_id
    assert len(again.choices[0].output_ids) == 13, "it goes on from its last token"


def test_only_the_job_that_kills_an_engine_which_has_nothing_else_fails(scene: Scene) -> None:
    a, b = scene.jobs[:2]
    scene.die(a, b)
    scene.die(a)
    assert not a.ended
    scene.die(a)
    assert a.result.error is not None
    assert a.result.error.code == "POISONED"
    assert not any(job.ended for job in scene.jobs[1:])
    assert scene.in_engine() == ["j1", "j2", "j3", "j4", "j5"]


def test_a_death_from_outside_leaves_all_jobs_in_the_engine(scene: Scene) -> None:
    scene.die(*scene.jobs, is_fault=False)
    assert len(scene.in_engine()) == 6
    assert scene.told() == []


def test_jobs_that_have_ended_or_that_the_engine_did_not_have_are_no_suspects(scene: Scene) -> None:
    """F13: the news of a death may wait behind a write to Redis, with jobs that came meanwhile."""
    a, b, c = scene.jobs[:3]
    a.process(TokenOutput(a.request_id, 0, (ord("a"),), "length"))
    assert a.ended
    b.is_in_engine = False
    scene.die(a, b, c)
    (event,) = scene.told()
    assert (event["suspects"], event["group"]) == (1, 1)
    assert scene.in_engine() == ["j2"]


def test_a_suspect_that_leaves_makes_room_for_the_others(scene: Scene) -> None:
    a, b = scene.jobs[:2]
    scene.die(a, b)
    scene.jobs.remove(a)
    scene.admission.left(a)
    scene.admission.update(scene.jobs)
    assert scene.in_engine() == ["j1"]


def test_nobody_is_sent_to_an_engine_that_is_not_up(scene: Scene) -> None:
    died = EngineExit(-11, is_fault=True)
    assert scene.engine.exited(died)
    scene.admission.engine_died(died, scene.jobs)
    scene.sent.clear()
    assert scene.admission.update(scene.jobs) == []
    scene.admission.submit(scene.jobs[0])
    assert scene.sent == []


def test_how_many_are_suspected_is_a_metric(scene: Scene) -> None:
    metrics = scene.admission._observer.metrics
    scene.die(*scene.jobs[:4])
    assert re.search(r"^orcd_suspects\{.*\} 4\.0$", metrics.page().decode(), re.MULTILINE)
    for job in scene.jobs[:4]:
        scene.admission.left(job)
    scene.admission.update(scene.jobs)
    assert re.search(r"^orcd_suspects\{.*\} 0\.0$", metrics.page().decode(), re.MULTILINE)


def test_a_job_that_begins_is_sent_by_whoever_claimed_it_once_it_will_be_known(scene: Scene) -> None:
    job = scene.job("new")
    scene.admission.begin(job)
    put, sent = scene.sent
    assert put == "new" and isinstance(sent, Add) and sent.request_id == job.request_id
    scene.admission.submit(job)
    assert job.is_in_engine and len(scene.sent) == 2, "it is sent once"
    job.withdraw()
    scene.admission.submit(job)
    assert isinstance(scene.sent[2], Add), "the next time it is not on its way"


def test_a_job_that_begins_while_no_engine_is_up_is_left_to_the_job_runner(scene: Scene) -> None:
    job = scene.job("new")
    scene.engine.is_up = False
    scene.admission.begin(job)
    assert scene.sent == ["new"]
    scene.engine.is_up = True
    scene.admission.submit(job)
    assert job.is_in_engine and isinstance(scene.sent[1], Add)


def test_a_job_that_begins_while_one_is_looked_for_is_judged_by_the_job_runner(scene: Scene) -> None:
    scene.die(*scene.jobs[:4])
    job = scene.job("new")
    scene.sent.clear()
    scene.admission.begin(job)
    scene.admission.submit(job)
    assert scene.sent == ["new"] and not job.is_in_engine


@pytest.mark.parametrize("comes_first", ["the death", "the job"])
def test_a_job_that_was_sent_to_an_engine_that_dies_is_sent_to_the_next_one(scene: Scene, comes_first: str) -> None:
    job = scene.job("new")
    scene.admission.begin(job)
    if comes_first == "the job":
        scene.monkeypatch.setattr(scene.engine.process, "_writer", None)  # the exit is not known here yet
        scene.admission.submit(job)
        assert job.is_in_engine, "it may be what killed the engine"
        scene.jobs.append(job)
    scene.die(scene.jobs[0], is_fault=False)
    if comes_first == "the death":
        scene.admission.submit(job)
    assert job.is_in_engine
    assert [each.request_id for each in scene.sent if isinstance(each, Add)].count(job.request_id) == 1
