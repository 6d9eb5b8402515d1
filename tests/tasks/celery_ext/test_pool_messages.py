"""What the pool does with single messages, on a real Redis and with a dispatcher that only takes notes."""

from __future__ import annotations

import json
import threading
from functools import partial
from typing import Any

import pytest
import redis
from celery.exceptions import Ignore, TaskRevokedError
from celery.worker import state

from orcd.client import Client
from orcd.errors import InvalidRequest, QueueFull
from orcd.result import Result
from orcd.store import schema
from tasks.celery_ext.revocation import refuse_task, revoke_tasks
from tasks.dispatch.delivery import Fenced, Unknown
from tasks.finisher import NUM_THREADS
from tests.conftest import wait_until
from tests.tasks.celery_ext.pool_scene import Scene

SHORT = {"prompt": "old pond", "max_tokens": 8}


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
    scene.dispatcher.answer(client.result("t", timeout=60))
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
    scene.dispatcher.answer(client.result("t", timeout=60))
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
    scene.dispatcher.answer(Unknown())
    assert isinstance(scene.answered(), Ignore)
    assert scene.app.AsyncResult("t").state == "PENDING"


@pytest.mark.parametrize("forgotten", [Fenced(), Unknown()])
def test_the_request_of_a_message_that_comes_again_is_run_where_redis_has_forgotten_its_job(
    scene: Scene, forgotten: Fenced | Unknown
) -> None:
    """A worker of another model had sent it on by its id alone, and an older snapshot knew the whole message only.

    That message was taken for a repetition, and both were acknowledged without a result.
    """
    scene.deliver({"job_id": "t"})
    scene.deliver(SHORT)
    scene.settle()
    scene.dispatcher.answer(forgotten)
    wait_until(lambda: len(scene.dispatcher.deliveries) == 2)
    request = scene.dispatcher.deliveries[-1].request
    assert (request.prompt, request.max_tokens) == ("old pond", 8)
    scene.dispatcher.answer(Result("t", "succeeded"))
    wait_until(lambda: len(scene.answers) == 2)
    assert scene.app.AsyncResult("t").state == "SUCCESS"


def test_so_it_is_where_it_comes_between_two_claims(scene: Scene) -> None:
    scene.deliver({"job_id": "t"})
    scene.dispatcher.answer(Fenced())
    wait_until(lambda: len(scene.dispatcher.deliveries) == 2)
    assert scene.dispatcher.deliveries[-1].request is None
    scene.deliver(SHORT)
    scene.settle()
    scene.dispatcher.answer(Unknown())
    wait_until(lambda: len(scene.dispatcher.deliveries) == 3)
    assert scene.dispatcher.deliveries[-1].request is not None
    assert scene.answers == []


def test_so_it_is_where_it_comes_just_before_the_other_is_answered(scene: Scene) -> None:
    """Both were answered that the job is unknown."""
    may_go_on, held = threading.Event(), threading.Barrier(NUM_THREADS + 1)
    for _ in range(NUM_THREADS):
        scene.pool._finisher.submit(lambda: (held.wait(60), may_go_on.wait(60)))
    held.wait(60)
    scene.deliver({"job_id": "t"})
    scene.dispatcher.answer(Unknown())
    scene.deliver(SHORT)
    may_go_on.set()
    wait_until(lambda: len(scene.dispatcher.deliveries) == 2)
    scene.dispatcher.answer(Result("t", "succeeded"))
    wait_until(lambda: len(scene.answers) == 2)
    scene.settle()
    assert scene.app.AsyncResult("t").state == "SUCCESS"


def test_a_job_that_nobody_knows_is_refused_by_its_id(scene: Scene) -> None:
    scene.deliver({"job_id": "t"})
    scene.dispatcher.answer(Unknown())
    assert "job t is unknown or has expired" in str(scene.answered())


def test_a_canvas_that_is_sent_again_while_its_task_is_here_goes_on_too(scene: Scene) -> None:
    """Its sender was told of an error in the middle: the task's second message was forgotten with the first."""
    scene.deliver(SHORT, embed={"chain": [{"task": "first"}]})
    scene.deliver(SHORT, embed={"chain": [{"task": "second"}]})
    wait_until(lambda: b"second" in (scene.store.redis.hget(schema.messages_key("t"), "t") or b""))
    scene.dispatcher.answer(InvalidRequest("an outcome"))
    wait_until(lambda: len(scene.dispatcher.deliveries) == 2)
    assert scene.dispatcher.deliveries[-1].message.embed["chain"][0]["task"] == "second"
    assert len(scene.answers) == 1
    scene.settle()
    assert b"second" in scene.store.redis.hget(schema.messages_key("t"), "t")
    scene.dispatcher.answer(InvalidRequest("an outcome"))
    wait_until(lambda: len(scene.answers) == 2)


def test_the_links_of_a_message_that_comes_while_a_plain_one_is_here_are_kept(scene: Scene, client: Client) -> None:
    client.submit(**SHORT, job_id="t")
    scene.deliver({"job_id": "t"})
    scene.deliver({"job_id": "t"}, embed={"chain": [{"task": "next"}]})
    wait_until(lambda: scene.store.redis.hexists(schema.messages_key("t"), "t"))
    assert len(scene.dispatcher.deliveries) == 1


def test_a_message_that_is_sent_again_with_more_urgency_is_followed_by_its_links_once(scene: Scene) -> None:
    """It was taken for another message, as it had waited for so long that a reaper had raised its priority."""
    link = {"callbacks": [{"task": "next", "args": [], "kwargs": {}, "options": {}}]}
    first = scene.deliver(SHORT, embed=link)
    wait_until(lambda: scene.dispatcher.deliveries)
    scene.store.arrive(first.arrivals())
    scene.deliver({"job_id": "t"}, embed=link, delivery_info={"routing_key": "orcd", "priority": 3})
    scene.end("t")
    scene.dispatcher.answer(Result("t", "succeeded"))
    wait_until(lambda: len(scene.answers) == 2)
    scene.settle()
    assert len(scene.dispatcher.deliveries) == 1
    assert not scene.store.redis.exists(schema.messages_key("t"))


def test_a_delivery_that_cannot_be_told_keeps_no_other_from_its_answer(scene: Scene) -> None:
    message = scene.deliver(SHORT, root_id="r")
    message.callbacks.insert(0, lambda _: 1 // 0)
    scene.deliver(SHORT, embed={"chain": [{"task": "second"}]}, root_id="r")
    wait_until(lambda: scene.dispatcher.deliveries)
    scene.dispatcher.answer(InvalidRequest("an outcome"))
    assert scene.answered()
    wait_until(lambda: len(scene.dispatcher.deliveries) == 2)


@pytest.mark.parametrize("key", ["celery-task-meta-t", schema.job_key("t")])
def test_a_key_of_another_type_concerns_one_message_only(scene: Scene, key: str) -> None:
    scene.store.redis.lpush(key, "x")
    scene.deliver(SHORT, revoked="expired")
    scene.dispatcher.answer(InvalidRequest("damaged"))
    assert scene.answered()
    scene.pool.submit(partial(revoke_tasks, task_ids=["t"], reason="revoked"))
    scene.pool.submit(partial(refuse_task, task_id="t", reason="it is no JSON"))
    scene.settle()
    assert scene.pool._messages == {}


def test_a_worker_that_loses_a_thread_leaves_though_nobody_takes_what_it_logs_of_that(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "should_stop", None)
    logs, is_taken = threading.Event(), threading.Event()
    monkeypatch.setattr(scene.pool.observer.log, "crashed", lambda *_, **__: logs.set() or is_taken.wait(60))
    dying = threading.Thread(target=scene.pool._thread_died, args=("claimer", KeyError()), daemon=True)
    dying.start()
    assert logs.wait(60)
    try:
        assert (state.should_stop, scene.pool.observer.is_draining) == (1, True)
    finally:
        is_taken.set()
        dying.join(60)
