"""What the pool stores of what became of a message's jobs."""

from __future__ import annotations

import time

from orcd.errors import InvalidRequest
from orcd.result import Result
from orcd.store import schema
from tasks.local.redis_server import RedisServer
from tests.conftest import wait_until
from tests.tasks.celery_ext.pool_scene import Scene

SHORT = {"prompt": "old pond", "max_tokens": 8}


def test_results_are_stored_under_the_jobs_ids_and_the_message_is_forgotten(scene: Scene) -> None:
    """F08: a job's result stayed pending when a message of another id had brought it."""
    scene.deliver({"requests": [SHORT, SHORT, {"temperature": 99}]}, name="orcd.generate_chunk")
    assert isinstance(scene.answered(), InvalidRequest)
    scene.answers.clear()
    message = scene.deliver({"requests": [SHORT, SHORT]}, name="orcd.generate_chunk", root_id="r")
    wait_until(lambda: len(scene.dispatcher.deliveries) == 2)
    scene.store.arrive(message.arrivals())
    assert scene.store.redis.exists(schema.messages_key("t-1"))
    scene.end("t-0", "t-1")
    scene.dispatcher.answer(Result("t-0", "succeeded"), InvalidRequest("too long"))
    assert scene.answered()
    assert [scene.app.AsyncResult(f"t-{n}").state for n in (0, 1)] == ["SUCCESS", "FAILURE"]
    wait_until(lambda: not scene.store.redis.exists(schema.messages_key("t-1")))


def test_a_message_whose_result_is_gone_before_that_is_noted_is_kept(scene: Scene) -> None:
    """F08: Redis came back from an older snapshot just then, and a chunk's result stayed pending for ever."""
    message = scene.deliver({"requests": [SHORT, SHORT]}, name="orcd.generate_chunk", root_id="r")
    wait_until(lambda: len(scene.dispatcher.deliveries) == 2)
    scene.store.arrive(message.arrivals())
    scene.end("t-0", "t-1")
    message.callbacks.append(lambda _: scene.store.redis.delete("celery-task-meta-t"))
    scene.dispatcher.answer(Result("t-0", "succeeded"), Result("t-1", "succeeded"))
    assert scene.answered()
    scene.settle()
    assert scene.store.redis.exists(schema.messages_key("t-1"))


def test_a_message_whose_sender_wants_no_result_is_done_without_one(scene: Scene) -> None:
    message = scene.deliver(SHORT, root_id="r", ignore_result=True)
    wait_until(lambda: scene.dispatcher.deliveries)
    scene.store.arrive(message.arrivals())
    scene.end("t")
    scene.dispatcher.answer(Result("t", "succeeded"))
    assert scene.answered()
    assert not scene.store.redis.exists("celery-task-meta-t")
    wait_until(lambda: not scene.store.redis.exists(schema.messages_key("t")))


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
