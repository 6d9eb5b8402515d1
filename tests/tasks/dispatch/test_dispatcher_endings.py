"""Every way to end a job, wherever the job is: one terminal event, the right code, the text so far, the slot free."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from orcd.client import Client
from orcd.events import decode_event, state_after
from orcd.store import schema
from orcd.store.enqueue import Message, RecordedMessage
from tasks.celery_ext.revocation import ERRORS, revoke_tasks
from tasks.dispatch import maintenance
from tests.conftest import wait_until
from tests.orcd.job_record import Ears, J, age, let_lease_run_out, logged, make_due_again, recorded, set_deadline, state
from tests.tasks.dispatch.scripted_worker import ScriptedWorker

LIMIT_S = 600
"""Of limits that pass when a test says so."""
TEXT = "ab"


class Scene:
    """Two workers that serve one model, a client, and a job."""

    def __init__(
        self, redis_url: str, client: Client, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
    ) -> None:
        self.client = client
        self.monkeypatch = monkeypatch
        self.workers = [
            ScriptedWorker(redis_url, name, self._publish, monkeypatch, **settings) for name in ("here", "there")
        ]
        self.here, self.there = self.workers
        self.store = self.there.store

    @property
    def alive(self) -> list[ScriptedWorker]:
        return [worker for worker in self.workers if worker.is_alive]

    def _publish(self, message: Message) -> None:
        self.there.deliver(message.job_id)

    def run(self, worker: ScriptedWorker, message: RecordedMessage | None, text: str) -> None:
        """The job is claimed by a worker, whose engine has drawn a text."""
        worker.deliver(J, message)
        wait_until(lambda: worker.runs(J))
        if text:
            worker.engine.draw(J, text)
            wait_until(lambda: self.client.status(J).tokens_out == len(text))


@dataclass(frozen=True)
class Way:
    """How a job comes to its end. ``goes_on`` are the places in which it does not: there it runs to its own end."""

    final: str
    code: str
    act: Callable[[Scene], object]
    fields: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    message: RecordedMessage | None = None
    goes_on: tuple[str, ...] = ()


def terminate(scene: Scene) -> None:
    """What all pools do when Celery broadcasts it; the pool that has the message tells its dispatcher, too."""
    for worker in scene.alive:
        revoke_tasks(worker.store, BACKEND, [J], "terminated")
        if worker is scene.here:
            worker.dispatcher.cancel(J, ERRORS["terminated"])


def revoke(scene: Scene) -> None:
    for worker in scene.alive:
        revoke_tasks(worker.store, BACKEND, [J], "revoked")


def let_queue_limit_pass(scene: Scene) -> None:
    scene.store.renew({}, is_ready=True)  # as a worker says regularly that it serves its queues
    scene.store.redis.hset(schema.job_key(J), "queued_ms", 1)
    if state(scene.store) == "queued":
        make_due_again(scene.store, J)


def let_deadline_pass(scene: Scene) -> None:
    set_deadline(scene.store, -1)
    change_claims(scene, deadline_ms=1)
    if state(scene.store) == "queued":
        make_due_again(scene.store, J)


def let_time_limit_pass(scene: Scene) -> None:
    """A job that waits has only become older by so much."""
    if state(scene.store) == "queued":
        age(scene.store, LIMIT_S)
    else:
        scene.store.redis.hset(schema.job_key(J), "started_ms", 1)
        change_claims(scene, started_ms=1)


def let_stall_limit_pass(scene: Scene) -> None:
    if state(scene.store) == "queued":
        age(scene.store, LIMIT_S)
    else:
        for worker in scene.alive:
            object.__setattr__(worker.settings, "stall_limit_s", 0.01)


def stay_away(scene: Scene) -> None:
    """Whoever has left does so for long."""
    if state(scene.store) != "queued":
        scene.monkeypatch.setattr(maintenance, "DISCONNECT_AFTER_S", 0.0)


def change_claims(scene: Scene, **fields: int) -> None:
    """What the workers know of the job."""
    for worker in scene.alive:
        for job in worker.dispatcher._runner.jobs():
            job.claim = replace(job.claim, **fields)


BACKEND = SimpleNamespace(get_state=lambda _: "PENDING", mark_as_revoked=lambda *_args, **_keywords: None)
RUNS = ("in the engine", "running", "with another worker", "worker dead")

WAYS = {
    "a client cancels": Way("cancelled", "CANCELLED", lambda scene: scene.client.cancel(J)),
    "Celery revokes": Way("cancelled", "CANCELLED", revoke, goes_on=RUNS),
    "Celery terminates": Way("cancelled", "CANCELLED", terminate),
    "Celery's time limit": Way(
        "failed",
        "INFERENCE_TIMEOUT",
        let_time_limit_pass,
        message=recorded("task", J, timelimit=[None, LIMIT_S]),
        goes_on=("queued",),
    ),
    "job time limit": Way(
        "failed",
        "INFERENCE_TIMEOUT",
        let_time_limit_pass,
        settings={"job_time_limit_s": LIMIT_S},
        goes_on=("queued",),
    ),
    "stall limit": Way(
        "failed", "INFERENCE_TIMEOUT", let_stall_limit_pass, settings={"stall_limit_s": LIMIT_S}, goes_on=("queued",)
    ),
    "deadline": Way("expired", "EXPIRED", let_deadline_pass, fields={"deadline_s": LIMIT_S}),
    "queue limit": Way("expired", "EXPIRED", let_queue_limit_pass, goes_on=RUNS),
    "nobody listens": Way("cancelled", "CANCELLED", stay_away, fields={"on_disconnect": "cancel"}, goes_on=("queued",)),
}


@pytest.fixture(params=WAYS, ids=WAYS.keys())
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


@pytest.fixture
def scene(redis_url: str, client: Client, monkeypatch: pytest.MonkeyPatch, way: Way) -> Iterator[Scene]:
    for name, seconds in {
        "TICK_S": 0.02, "REAP_EVERY_S": 0.05, "LISTENERS_EVERY_S": 0.05, "DISCONNECT_AFTER_S": float(LIMIT_S)
    }.items():  # fmt: skip
        monkeypatch.setattr(maintenance, name, seconds)
    scene = Scene(redis_url, client, monkeypatch, way.settings)
    yield scene
    for worker in scene.workers:
        worker.die()


@pytest.mark.parametrize("place", ["queued", *RUNS])
def test_a_job_ends_once_and_leaves_nothing_behind(scene: Scene, way: Way, place: str) -> None:
    ears = Ears(scene.store.redis, schema.events_channel(J))
    scene.client.submit(prompt="x", job_id=J, max_tokens=9, **way.fields)
    text = "" if place in ("queued", "in the engine") else TEXT
    if place != "queued":
        scene.run(scene.there if place == "with another worker" else scene.here, way.message, text)
    if place == "worker dead":
        scene.here.die()
    if "on_disconnect" in way.fields:
        ears.close()
    way.act(scene)
    if place == "worker dead":
        let_lease_run_out(scene.store)
    final, code = way.final, way.code
    if place in way.goes_on:
        time.sleep(0.5)
        final, code, text = finish(scene, way, text)
    wait_until(lambda: state(scene.store) in schema.TERMINAL_STATES)
    result = scene.client.result(J, timeout=60)
    assert (result.state, result.error and result.error.code) == (final, code)
    assert result.text == text
    check_nothing_is_left(scene)
    if "on_disconnect" not in way.fields:
        assert sum(bool(state_after(decode_event(event))) for event in ears.heard()) == 1
        ears.close()


def finish(scene: Scene, way: Way, text: str) -> tuple[str, str | None, str]:
    """A job that nothing has ended runs to its end; one that nobody had taken is ended when it runs."""
    assert state(scene.store) in ("queued", "running")
    if state(scene.store) == "queued" and scene.here.is_alive:
        scene.run(scene.here, way.message, text)
        way.act(scene)
        return way.final, way.code, text
    (worker,) = [worker for worker in scene.alive if J in worker.engine.live] or wait_for_owner(scene)
    worker.engine.draw(J, "c", finish="stop")
    return "succeeded", None, text + "c"


def wait_for_owner(scene: Scene) -> list[ScriptedWorker]:
    """The worker that takes the job over."""
    wait_until(lambda: scene.there.runs(J))
    return [scene.there]


def check_nothing_is_left(scene: Scene) -> None:
    """One terminal event in the log, no slot taken, on no list."""
    events = [event for _, event in logged(scene.store)]
    assert [bool(state_after(event)) for event in events] == [False] * (len(events) - 1) + [True]
    for worker in scene.alive:
        wait_until(lambda worker=worker: not worker.dispatcher.num_jobs and not worker.engine.live)
    assert scene.store.redis.zcard(schema.QUEUED) == scene.store.redis.zcard(schema.RUNNING) == 0
