"""A claimer, with the test in the place of Celery before it and of the job runner behind it."""

from __future__ import annotations

import io
import json
from queue import Empty, SimpleQueue
from typing import Any

from orcd.events import Error, Event, Started
from orcd.request import Request, parse
from orcd.store.enqueue import RecordedMessage
from orcd.store.job_store import JobStore
from tasks.dispatch.active_job import ActiveJob
from tasks.dispatch.claimer import Claimer
from tasks.dispatch.delivery import Answer, Delivery
from tasks.dispatch.lease_keeper import LeaseKeeper
from tasks.dispatch.prompt_encoder import PromptEncoder
from tasks.observe.observer import Observer
from tests.tasks.dispatch.byte_model import ENCODER, READY
from worker.log import EventLog
from worker.settings import Settings

REQUEST = parse({"prompt": "old pond", "seed": 1})


class ClaimerScene:
    """A claimer with what it passes on: jobs that begin, and what became of the deliveries that do not."""

    def __init__(
        self, store: JobStore, encoder: PromptEncoder = ENCODER, max_attempts: int = 3, lease_ms: int = 60_000
    ) -> None:
        self._begun: SimpleQueue[ActiveJob] = SimpleQueue()
        self._outcomes: SimpleQueue[tuple[str, Answer]] = SimpleQueue()
        self._log = io.StringIO()
        self.deaths: list[tuple[str, BaseException | None]] = []
        observer = Observer(EventLog("json", "w", self._log), "w", Settings(name="demo", device="cpu"))
        self.leases = LeaseKeeper(store, lease_ms, lambda: True, lambda _: None, lambda _: None, self._died)
        self.claimer = Claimer(store, encoder, max_attempts, 300, observer, self.leases, self._begun.put, self._died)

    def _died(self, name: str, error: BaseException | None) -> None:
        self.deaths.append((name, error))

    def __enter__(self) -> ClaimerScene:
        self.claimer.start(READY)
        return self

    def __exit__(self, *_exception: object) -> None:
        self.claimer.stop(5)
        assert self.unexpected() == []
        assert self.deaths == []

    def put(
        self,
        job_id: str,
        request: Request | None = None,
        *,
        waits: bool = False,
        message: RecordedMessage | None = None,
        time_limit_s: float | None = None,
    ) -> None:
        def done(outcome: Answer) -> None:
            self._outcomes.put((job_id, outcome))

        self.claimer.put(Delivery(job_id, request, done, waits, message, time_limit_s))

    def log_events(self) -> list[dict[str, Any]]:
        """What was logged so far."""
        return [json.loads(line) for line in self._log.getvalue().splitlines()]

    def begun(self) -> ActiveJob:
        """The next job that begins; its message is still open."""
        return self._begun.get(timeout=60)

    def outcome(self) -> tuple[str, Answer]:
        """The next delivery that was answered without beginning."""
        return self._outcomes.get(timeout=60)

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
