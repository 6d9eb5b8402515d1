"""What the pool does with single messages, on a real Redis and with a dispatcher that only takes notes."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import redis
from celery.app.trace import trace_task_ret
from celery.exceptions import Ignore, TaskRevokedError

from orcd.client import Client
from orcd.errors import InvalidRequest, OrcdError, QueueFull
from orcd.result import Result
from orcd.settings import ClientSettings
from orcd.store import schema
from orcd.store.enqueue import Publisher
from orcd.store.job_store import JobStore
from tasks.app import create_app
from tasks.celery_ext.pool import Pool
from tasks.celery_ext.tasks import TASKS
from tasks.dispatch.delivery import Delivery, Fenced, Outcome
from tasks.finisher import NUM_THREADS
from tasks.local.redis_server import RedisServer
from tests.conftest import wait_until
from worker.settings import Settings

SHORT = {"prompt": "old pond", "max_tokens": 8}


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

    def answer(self, *outcomes: Outcome | Fenced) -> None:
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
            self.pool._finisher.submit(lambda: each_thread.wait(30))
        each_thread.wait(30)

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


@pytest.fixture
def scene(redis_url: str) -> Iterator[Scene]:
    scene = Scene(redis_url)
    yield scene
    scene.close()


@pytest.mark.parametrize("kwargs", [None, [1], {"job_id": ["x"]}, {"temperature": 99}])
def test_a_message_that_cannot_be_read_is_answered_and_the_next_one_taken(scene: Scene, kwargs: Any) -> None:
    scene.deliver(kwargs)
    assert isinstance(scene.answered(), InvalidRequest)
    assert scene.app.AsyncResult("t").state == "FAILURE"
    scene.answers.clear()
    scene.deliver(SHORT)
    scene.dispatcher.answer(Result("t", "succeeded"))
    assert "succeeded" in scene.answered()


@pytest.mark.parametrize(("reason", "state"), [("revoked", "cancelled"), ("expired", "expired")])
def test_an_inline_request_that_must_not_run_is_written_down_and_ended(
    scene: Scene, client: Client, reason: str, state: str
) -> None:
    """F10: its stream never ended, and after a restart it ran."""
    scene.deliver(SHORT, revoked=reason)
    wait_until(lambda: scene.dispatcher.deliveries)
    assert client.status("t").state == state
    scene.dispatcher.answer(client.result("t", timeout=5))
    error = scene.answered()
    assert isinstance(error, TaskRevokedError)
    assert error.args == (reason,)


def test_so_is_one_that_was_revoked_before_any_worker_had_its_message(scene: Scene, client: Client) -> None:
    scene.app.backend.mark_as_revoked("t", "revoked")
    scene.deliver({"requests": [SHORT, SHORT]}, name="orcd.generate_chunk")
    wait_until(lambda: len(scene.dispatcher.deliveries) == 2)
    assert [client.status(job_id).state for job_id in ("t-0", "t-1")] == ["cancelled"] * 2


def test_a_message_that_was_accepted_but_not_claimed_is_terminated(scene: Scene, client: Client) -> None:
    """F10: `revoke(terminate=True)` was ignored until the claim."""
    scene.deliver(SHORT).terminate()
    assert scene.dispatcher.cancelled == ["t"]
    wait_until(lambda: scene.state("t") == "cancelled")
    scene.dispatcher.answer(client.result("t", timeout=5))
    assert isinstance(scene.answered(), TaskRevokedError)


def test_a_request_for_another_model_is_sent_to_its_queue_with_its_links(scene: Scene, connection: redis.Redis) -> None:
    """F09: whatever model was there answered it."""
    scene.deliver(SHORT | {"model": "other"}, embed={"callbacks": [{"task": "next", "args": []}]})
    wait_until(lambda: scene.dispatcher.deliveries)
    (text,) = connection.lrange("orcd.other:5", 0, -1)
    sent = json.loads(text)
    assert (sent["headers"]["id"], sent["headers"]["task"]) == ("t", "orcd.generate")
    assert scene.store.claim(["t"]) == ["busy"]
    scene.dispatcher.answer(None)
    assert isinstance(scene.answered(), Ignore)


def test_a_request_for_another_model_that_the_full_queue_refuses_is_not_sent_on(
    scene: Scene, client: Client, connection: redis.Redis
) -> None:
    scene.store.limit_queue(1, replaces=True)
    client.submit(prompt="x")
    scene.deliver(SHORT | {"model": "other"})
    wait_until(lambda: scene.dispatcher.deliveries)
    assert not connection.exists("orcd.other:5")
    scene.dispatcher.answer(QueueFull("too many jobs wait"))
    assert isinstance(scene.answered(), QueueFull)
    assert scene.app.AsyncResult("t").state == "FAILURE"


def test_what_another_worker_has_is_acknowledged_but_what_is_handed_over_is_not(scene: Scene) -> None:
    scene.deliver({"job_id": "t"})
    scene.dispatcher.answer(None)
    assert isinstance(scene.answered(), Ignore)
    scene.answers.clear()
    scene.deliver({"job_id": "t"})
    scene.pool._is_leaving = True
    scene.dispatcher.answer(None)
    scene.settle()
    assert scene.answers == []


def test_a_job_that_came_back_while_its_message_was_here_is_claimed_again(scene: Scene) -> None:
    """Its lease was lost, so another worker put it back and sent its message, which this one took for a repetition."""
    scene.deliver({"job_id": "t"})
    scene.deliver({"job_id": "t"})
    scene.dispatcher.answer(None)
    wait_until(lambda: len(scene.dispatcher.deliveries) == 2)
    assert scene.answers == []
    scene.dispatcher.answer(Result("t", "succeeded"))
    wait_until(lambda: len(scene.answers) == 2)


@pytest.mark.parametrize("kwargs", [SHORT, {"job_id": "t"}])
def test_a_job_that_was_fenced_is_claimed_again(scene: Scene, kwargs: dict[str, Any]) -> None:
    """Redis came back from an older snapshot: the message, once acknowledged, was the last to tell of the job."""
    scene.deliver(kwargs)
    scene.dispatcher.answer(Fenced())
    wait_until(lambda: len(scene.dispatcher.deliveries) == 2)
    assert scene.answers == []
    scene.dispatcher.answer(None)  # it was not forgotten: another worker has it
    assert isinstance(scene.answered(), Ignore)
    assert len(scene.dispatcher.deliveries) == 2


def test_a_job_that_was_deleted_while_it_ran_leaves_no_result(scene: Scene) -> None:
    scene.deliver({"job_id": "t"})
    scene.dispatcher.answer(Fenced())
    wait_until(lambda: len(scene.dispatcher.deliveries) == 2)
    scene.dispatcher.answer(InvalidRequest("unknown"))
    assert isinstance(scene.answered(), Ignore)
    assert scene.app.AsyncResult("t").state == "PENDING"


def test_a_canvas_that_is_sent_again_while_its_task_is_here_goes_on_too(scene: Scene) -> None:
    """Its sender was told of an error in the middle: the task's second message was forgotten with the first."""
    scene.deliver(SHORT, embed={"chain": [{"task": "first"}]})
    scene.deliver(SHORT, embed={"chain": [{"task": "second"}]})
    wait_until(lambda: b"second" in (scene.store.redis.hget(schema.messages_key("t"), "t") or b""))
    scene.dispatcher.answer(InvalidRequest("an outcome"))
    wait_until(lambda: len(scene.answers) == 2)
    scene.settle()
    assert b"second" in scene.store.redis.hget(schema.messages_key("t"), "t")


def test_the_links_of_a_message_that_comes_while_a_plain_one_is_here_are_kept(scene: Scene, client: Client) -> None:
    client.submit(**SHORT, job_id="t")
    scene.deliver({"job_id": "t"})
    scene.deliver({"job_id": "t"}, embed={"chain": [{"task": "next"}]})
    wait_until(lambda: scene.store.redis.hexists(schema.messages_key("t"), "t"))
    assert len(scene.dispatcher.deliveries) == 1


@pytest.mark.parametrize("key", ["celery-task-meta-t", schema.job_key("t")])
def test_a_key_of_another_type_concerns_one_message_only(scene: Scene, key: str) -> None:
    scene.store.redis.lpush(key, "x")
    scene.deliver(SHORT, revoked="expired")
    scene.dispatcher.answer(InvalidRequest("damaged"))
    assert scene.answered()
    scene.pool.revoke(["t"], "revoked")
    scene.settle()
    assert scene.pool._messages == {}


def test_results_are_stored_under_the_jobs_ids_and_the_message_is_forgotten(scene: Scene) -> None:
    """F08: a job's result stayed pending when a message of another id had brought it."""
    scene.deliver({"requests": [SHORT, SHORT, {"temperature": 99}]}, name="orcd.generate_chunk")
    assert isinstance(scene.answered(), InvalidRequest)
    scene.answers.clear()
    message = scene.deliver({"requests": [SHORT, SHORT]}, name="orcd.generate_chunk", root_id="r")
    wait_until(lambda: len(scene.dispatcher.deliveries) == 2)
    scene.store.arrive(message.arrivals())
    assert scene.store.redis.exists(schema.messages_key("t-1"))
    scene.dispatcher.answer(Result("t-0", "succeeded"), InvalidRequest("too long"))
    assert scene.answered()
    assert [scene.app.AsyncResult(f"t-{n}").state for n in (0, 1)] == ["SUCCESS", "FAILURE"]
    wait_until(lambda: not scene.store.redis.exists(schema.messages_key("t-1")))


def test_a_place_is_free_again_when_redis_is_back_and_the_result_stored(redis_server: RedisServer) -> None:
    """F17: both leaked."""
    scene = Scene(redis_server.url)
    try:
        scene.deliver({"job_id": "t"}, embed={"callbacks": [{"task": "next", "args": [], "kwargs": {}, "options": {}}]})
        redis_server.kill()
        scene.dispatcher.answer(Result("t", "succeeded"))
        time.sleep(3)
        assert scene.answers == []
        redis_server.start()
        assert "succeeded" in scene.answered()
        assert scene.app.AsyncResult("t").state == "SUCCESS"
        assert scene.pool._messages == {}
    finally:
        scene.close()


def test_a_result_whose_key_is_of_another_type_costs_no_place(scene: Scene) -> None:
    scene.store.redis.lpush("celery-task-meta-t", "x")
    scene.deliver({"job_id": "t"})
    scene.dispatcher.answer(Result("t", "succeeded"))
    assert scene.answered()
    assert scene.pool._messages == {}
