"""The pool on a real Redis, with a dispatcher that only takes notes."""

from __future__ import annotations

import gc
import json
import threading
from functools import partial
from typing import Any

import redis
from celery.app.trace import trace_task_ret

from orcd.errors import OrcdError
from orcd.settings import ClientSettings
from orcd.store import schema
from orcd.store.enqueue import Publisher
from orcd.store.job_store import JobStore
from tasks.app import create_app
from tasks.celery_ext.pool import Pool
from tasks.celery_ext.tasks import TASKS
from tasks.dispatch.delivery import Answer, Delivery
from tasks.finisher import NUM_THREADS
from tests.conftest import wait_until
from worker.settings import Settings


class Dispatcher:
    """Takes notes."""

    num_jobs = 0

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.cancelled: list[str] = []

    def accept(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)

    def cancel(self, job_id: str, _: OrcdError) -> None:
        self.cancelled.append(job_id)

    def answer(self, *outcomes: Answer) -> None:
        """What becomes of the last deliveries, in order."""
        wait_until(lambda: len(self.deliveries) >= len(outcomes))
        for delivery, outcome in zip(self.deliveries[-len(outcomes) :], outcomes, strict=True):
            delivery.done(outcome)


class Scene:
    """A pool as Celery has it, of a worker whose model is called demo."""

    def __init__(self, url: str) -> None:
        settings = Settings(redis_url=url, model="demo.gguf", device="cpu", log_format="json")
        self.app = create_app(settings)
        for task in TASKS:
            self.app.register_task(task())
        self.dispatcher = Dispatcher()
        self.pool = Pool(8, app=self.app)
        self.store = JobStore(redis.Redis.from_url(url), owner="w", model="demo", lease_ms=60_000, ttl_s=60)
        self.pool._store = self.store
        self.pool._publisher = Publisher(ClientSettings(redis_url=url))
        self.pool.dispatcher = self.dispatcher  # type: ignore[assignment]
        self._backends = [self.app.backend]
        self._prepare = self.pool._finisher._prepare
        self.pool._finisher._prepare = self._prepare_finisher
        self.pool._finisher.start()
        self.answers: list[Any] = []

    def deliver(self, kwargs: Any, *, name: str = "orcd.generate", embed: Any = None, **headers: Any) -> Any:
        """A message with the id t, as Celery hands it to the pool; returns what Celery keeps of it."""
        request = {"id": "t", "task": name, "delivery_info": {"routing_key": "orcd", "priority": 5}, **headers}
        body = json.dumps([[], kwargs, embed or {}]), "application/json", "utf-8"
        target = partial(trace_task_ret, app=self.app)
        return self.pool.on_apply(target, (name, "t", request, *body), {}, self.answers.append)

    def answered(self) -> Any:
        """The one answer to Celery: the result, or the exception."""
        wait_until(lambda: self.answers)
        ((failed, value, _),) = self.answers
        return getattr(value.exception, "exc", value.exception) if failed else value

    def settle(self) -> None:
        """Wait until the finishers have done what they were given."""
        each_thread = threading.Barrier(NUM_THREADS + 1)
        for _ in range(NUM_THREADS):
            self.pool._finisher.submit(lambda: each_thread.wait(60))
        each_thread.wait(60)

    def end(self, *job_ids: str) -> None:
        """As whoever ran these jobs has it in their records."""
        for job_id in job_ids:
            self.store.redis.hset(schema.job_key(job_id), "state", "succeeded")

    def state(self, job_id: str) -> str:
        return (self.store.redis.hget(schema.job_key(job_id), "state") or b"").decode()

    def close(self) -> None:
        self.pool._finisher.stop(60)
        gc.collect()  # an AsyncResult unsubscribes when it is collected, so it must go before its connections do
        for backend in self._backends:
            backend.client.connection_pool.disconnect()
        self.pool._publisher.close()
        self.store.redis.close()
        self.app.close()

    def _prepare_finisher(self) -> None:
        self._prepare()
        self._backends.append(self.app.backend)  # each thread has one of its own, which must outlive it to be closed
