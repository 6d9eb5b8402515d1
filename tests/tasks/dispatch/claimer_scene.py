"""A claimer, with the test in the place of Celery before it and of the job runner behind it."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from typing import Any

from orcd.events import Error, Event, Started
from orcd.request import Request, parse
from orcd.store.job_store import JobStore
from tasks.dispatch.active_job import ActiveJob
from tasks.dispatch.claimer import Claimer
from tasks.dispatch.delivery import Delivery, Outcome
from tasks.dispatch.prompt_encoder import PromptEncoder
from tests.tasks.dispatch.byte_model import ENCODER, READY

REQUEST = parse({"prompt": "old pond", "seed": 1})


class ClaimerScene:
    """A claimer with what it passes on: jobs that begin, and what became of the deliveries that do not."""

    def __init__(self, store: JobStore, encoder: PromptEncoder = ENCODER, max_attempts: int = 3) -> None:
        self._begun: SimpleQueue[ActiveJob] = SimpleQueue()
        self._outcomes: SimpleQueue[tuple[str, Outcome]] = SimpleQueue()
        self.claimer = Claimer(store, encoder, "demo", max_attempts, self._begun.put)

    def __enter__(self) -> ClaimerScene:
        self.claimer.start(READY)
        return self

    def __exit__(self, *_exception: object) -> None:
        self.claimer.stop()
        assert self.unexpected() == []

    def put(self, job_id: str, request: Request | None = None) -> None:
        self.claimer.put(Delivery(job_id, request, lambda outcome: self._outcomes.put((job_id, outcome))))

    def begun(self) -> ActiveJob:
        """The next job that begins; its message is still open."""
        return self._begun.get(timeout=5)

    def outcome(self) -> tuple[str, Outcome]:
        """The next delivery that was answered without beginning."""
        return self._outcomes.get(timeout=5)

    def unexpected(self) -> list[Any]:
        """What nobody has asked for."""
        left: list[Any] = []
        for queue in (self._begun, self._outcomes):
            try:
                left.append(queue.get_nowait())
            except Empty:
                continue
        return left


def events_of(job: ActiveJob) -> list[Event]:
    return [logged.event for logged in job.take_append().events]


def error_of(scene: ClaimerScene) -> Error:
    """The error with which the next job ends before it has begun."""
    job = scene.begun()
    started, error = events_of(job)
    assert isinstance(started, Started)
    assert isinstance(error, Error)
    assert job.ended
    assert job.add() is None, "the engine hears nothing of it"
    return error
