"""Workers whose engine does what the test says: their dispatchers, threads and Redis are real."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from orcd.store.enqueue import Message, RecordedMessage
from orcd.store.job_store import JobStore
from tasks.dispatch.delivery import Answer, Delivery
from tasks.dispatch.dispatcher import Dispatcher
from tasks.dispatch.engine import engine_supervisor
from tasks.observe.observer import Observer
from tests.tasks.dispatch.byte_model import ENCODER, READY, TOKENIZER
from worker import contract
from worker.log import EventLog
from worker.settings import Settings

LEASE_MS = 60_000
"""No lease runs out unless a test lets it, however slow the machine is."""


class ScriptedEngine:
    """In the place of an engine process: keeps the requests that it was sent and draws what the test wants."""

    pid = 1
    started_at = 0.0

    def __init__(
        self, settings: Settings, on_event: Callable[[contract.Event], None], on_exit: object, on_death: object
    ) -> None:
        self._on_event = on_event
        self.live: dict[str, str] = {}

    @property
    def last_heard(self) -> float:
        """It speaks all the time."""
        return time.monotonic()

    def start(self, _engine_run: object = None) -> None:
        self._on_event(READY)

    def stop(self, timeout_s: float = 0.0) -> None:
        """Nothing is left to end."""

    def send(self, request: contract.Request) -> bool:
        match request:
            case contract.Add():
                self.live[request.request_id.partition("#")[0]] = request.request_id
            case contract.Abort():
                self.live = {job_id: each for job_id, each in self.live.items() if each != request.request_id}
                self._on_event(contract.Outputs((contract.TokenOutput(request.request_id, 0, (), "abort"),)))
        return True

    @property
    def writer(self) -> ScriptedEngine:
        """It has one run only."""
        return self

    def put(self, request: contract.Request, announce: Callable[[], None]) -> None:
        announce()
        self.send(request)

    def draw(self, job_id: str, text: str, finish: contract.FinishReason | None = None) -> None:
        """Some tokens for a job that it has."""
        request_id = self.live.pop(job_id) if finish else self.live[job_id]
        ids = tuple(TOKENIZER.encode(text, add_special=False))
        self._on_event(contract.Outputs((contract.TokenOutput(request_id, 0, ids, finish),)))


class ScriptedWorker:
    """A worker without its Celery part. ``publish`` gets the messages that it sends."""

    def __init__(
        self,
        redis_url: str,
        name: str,
        publish: Callable[[Message], None],
        monkeypatch: pytest.MonkeyPatch,
        **settings: Any,
    ) -> None:
        self.deaths: list[str] = []
        self.outcomes: list[Answer] = []
        self.is_alive = True
        self._redis = redis.Redis.from_url(redis_url)
        self.store = JobStore(self._redis, owner=name, model=READY.model, lease_ms=LEASE_MS, ttl_s=600)
        observer = Observer(EventLog("json", name, io.StringIO()), name, Settings(name=READY.model, device="cpu"))
        self.settings = Settings(device="cpu", lease_ms=LEASE_MS, **settings)
        with monkeypatch.context() as patch:
            patch.setattr(engine_supervisor, "EngineProcess", ScriptedEngine)
            self.dispatcher = Dispatcher(
                self.settings,
                self.store,
                ENCODER,
                observer,
                publish,
                lambda: self.deaths.append("lost"),
                lambda farewell: self.deaths.append("told to leave"),
                lambda thread, _: self.deaths.append(thread),
            )
        self.engine: Any = self.dispatcher._runner.engine.process
        self.dispatcher.start()
        assert self.dispatcher.wait_until_loaded(60)

    def deliver(self, job_id: str, recorded: RecordedMessage | None = None) -> None:
        """A message about the job arrives; with ``recorded`` it says more than a plain one."""
        limit_s = recorded.time_limit_s if recorded else None
        self.dispatcher.accept(Delivery(job_id, None, self.outcomes.append, message=recorded, time_limit_s=limit_s))

    def runs(self, job_id: str) -> bool:
        """Whether both its engine and its job runner have the job: a claim is sent to both at once."""
        return job_id in self.engine.live and job_id in self.dispatcher.running_jobs()

    def die(self) -> None:
        """It stops where it is: nothing is given back, and its leases are left to run out."""
        if self.is_alive:
            self.is_alive = False
            self.dispatcher._claimer.stop(5)
            self.dispatcher.stop(5, 5)
            self._redis.close()
        assert self.deaths == []
