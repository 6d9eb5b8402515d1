"""Maintenance, with the test in the place of the job runner."""

from __future__ import annotations

import io
import json
import time
from types import SimpleNamespace
from typing import Any

from orcd.errors import OrcdError
from orcd.request import parse
from orcd.store.claim import Claim
from orcd.store.enqueue import Message
from orcd.store.job_store import JobStore
from tasks.dispatch.active_job import ActiveJob, Termination
from tasks.dispatch.maintenance import Maintenance
from tasks.observe.observer import Observer
from tests.orcd.job_record import submit
from tests.tasks.dispatch.byte_model import ENCODER, READY
from worker.log import EventLog
from worker.settings import Settings


class _Runner:
    """As much of a job runner as maintenance needs."""

    def __init__(self) -> None:
        self.active: list[ActiveJob] = []
        self.told: list[Termination] = []
        self.engine = SimpleNamespace(process=SimpleNamespace(last_heard=0.0))

    def jobs(self) -> list[ActiveJob]:
        return list(self.active)

    def put(self, termination: Termination) -> None:
        self.told.append(termination)


class MaintenanceScene:
    """A worker's maintenance with the jobs that it looks after, what it says of them, and what it publishes."""

    def __init__(self, store: JobStore, **settings: Any) -> None:
        self.store = store
        self.published: list[Message] = []
        self._runner = _Runner()
        self.engine_process = self._runner.engine.process
        self._log = io.StringIO()
        worker = Settings(name="demo", device="cpu", **settings)
        self.observer = Observer(EventLog("json", "worker-1", self._log), "worker-1", worker)
        self.maintenance = Maintenance(
            store,
            worker,
            self.observer,
            lambda message: self.publish(message),
            self._runner,  # type: ignore[arg-type]
            lambda name, error: None,
        )

    def publish(self, message: Message) -> None:
        """What maintenance publishes by; a test may put its own in its place."""
        self.published.append(message)

    def begin(self, job_id: str = "a", *, time_limit_s: float | None = None, **fields: Any) -> ActiveJob:
        """Submit and claim a job; maintenance looks after it."""
        submit(self.store, job_id, parse({"prompt": "old pond", **fields}))
        claim = self.store.claim([job_id])[0]
        assert isinstance(claim, Claim)
        request = claim.request
        assert not isinstance(request, OrcdError)
        job = ActiveJob(claim, ENCODER.encode(request, READY), READY, lambda outcome: None, time_limit_s)
        self._runner.active.append(job)
        return job

    def run(self) -> list[Termination]:
        """Do what is due; returns what the job runner is told."""
        self.maintenance.run_due()
        told, self._runner.told = self._runner.told, []
        return told

    def wait_for_termination(self) -> tuple[str, str, str]:
        """Run it as its thread does until it says something; job, code and message of the only termination."""
        end = time.monotonic() + 60
        while not (told := self.run()):
            assert time.monotonic() < end, "no termination"
            time.sleep(0.01)
        return only(told)

    def log_events(self) -> list[dict[str, Any]]:
        """What was logged so far."""
        return [json.loads(line) for line in self._log.getvalue().splitlines()]


def only(told: list[Termination]) -> tuple[str, str, str]:
    """Job, code and message of the only termination."""
    (termination,) = told
    assert termination.error is not None
    return termination.job_id, termination.error.code, termination.error.message
