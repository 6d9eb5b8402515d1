"""Requests, records and encoders that are broken fail their own job only; a Redis that is away is waited for."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import redis

from orcd.errors import OrcdError
from orcd.events import Token
from orcd.request import Request, parse
from orcd.store import schema
from orcd.store.job_store import JobStore
from tasks.dispatch.prompt_encoder import PromptEncoder
from tasks.local.redis_server import RedisServer
from tests.conftest import wait_until
from tests.orcd.job_record import submit
from tests.orcd.job_writer import MakeStore, claimed
from tests.tasks.dispatch.byte_model import READY, TEMPLATE, TOKENIZER
from tests.tasks.dispatch.claimer_scene import REQUEST, ClaimerScene, error_of
from worker.text.chat_template import ChatTemplate


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("prompt: must not be empty", b'{"prompt": ""}'),
        ("colour: unknown field", b'{"prompt": "x", "colour": "blue"}'),
        ("not valid JSON", b'{"prompt": "x'),
        ("not valid JSON", b"\xff\xfe"),
    ],
)
def test_a_stored_request_that_cannot_be_read_fails_by_name(
    scene: ClaimerScene, store: JobStore, connection: redis.Redis, field: str, request_: bytes
) -> None:
    submit(store, "a", REQUEST)
    connection.hset(schema.job_key("a"), "request", request_)
    scene.put("a")
    error = error_of(scene)
    assert error.code == "INVALID_REQUEST"
    assert field in error.message


def test_a_request_that_cannot_be_read_any_more_keeps_the_answers_it_had(
    scene: ClaimerScene, store: JobStore, make_store: MakeStore, connection: redis.Redis
) -> None:
    """How many choices it wanted is no longer known, but its log has two."""
    submit(store, "a", parse({"prompt": "old pond", "n": 2}))
    writer = claimed(make_store("worker-2", lease_ms=1), "a")
    writer.start()
    writer.write(Token("fr", 1, list(b"fr"), choice=1))
    connection.hset(schema.job_key("a"), "request", b"{}")
    time.sleep(0.01)
    scene.put("a")
    job = scene.begun()
    assert job.result.error is not None
    assert [choice.text for choice in job.result.choices] == ["fr"]


@pytest.mark.parametrize("tamper", ["log", "record"])
def test_a_record_that_is_damaged_fails_its_delivery_and_no_other(
    scene: ClaimerScene, store: JobStore, connection: redis.Redis, tamper: str
) -> None:
    for job_id in ("damaged", "sound"):
        submit(store, job_id, REQUEST)
    if tamper == "log":
        connection.xadd(schema.log_key("damaged"), {"e": b"no event"})
    else:
        connection.hset(schema.job_key("damaged"), "created_ms", "yesterday")
    scene.put("damaged")
    scene.put("sound")
    job_id, outcome = scene.outcome()
    assert job_id == "damaged"
    assert isinstance(outcome, OrcdError)
    assert outcome.code == "LOG_DAMAGED"
    assert "damaged" in outcome.message
    assert store.claim(["damaged"])[0] == "finished", "it is ended, so that nobody claims it again and again"
    assert scene.begun().job_id == "sound"


def test_what_the_encoder_refuses_fails_that_job_alone(scene: ClaimerScene) -> None:
    scene.put("long", parse({"prompt": "x" * 100}))
    scene.put("short", REQUEST)
    assert error_of(scene).code == "CONTEXT_LENGTH_EXCEEDED"
    assert scene.begun().job_id == "short"


def test_a_bug_in_the_encoder_fails_that_job_alone_and_quotes_nothing(store: JobStore) -> None:
    class Broken(PromptEncoder):
        def encode(self, request: Request, ready: Any) -> Any:
            if request.prompt == "secret":
                raise KeyError(request.prompt)
            return super().encode(request, ready)

    with ClaimerScene(store, Broken(TOKENIZER, ChatTemplate(TEMPLATE))) as scene:
        scene.put("bad", parse({"prompt": "secret"}))
        scene.put("good", REQUEST)
        error = error_of(scene)
        assert (error.code, error.message) == ("INTERNAL", "the prompt could not be encoded (KeyError)")
        assert scene.begun().job_id == "good"


def _store_on(server: RedisServer) -> JobStore:
    connection = redis.Redis.from_url(server.url, socket_timeout=60)
    return JobStore(connection, owner="worker-1", model="demo", lease_ms=60_000, ttl_s=600)


def test_while_redis_is_away_deliveries_wait(redis_server: RedisServer) -> None:
    store = _store_on(redis_server)
    submit(store, "a", REQUEST)
    with ClaimerScene(store) as scene:
        redis_server.kill()
        scene.put("a")
        scene.put("b", REQUEST)
        time.sleep(0.1)
        assert scene.unexpected() == []
        redis_server.start()
        assert [scene.begun().job_id, scene.begun().job_id] == ["a", "b"]
    store.redis.close()


def test_a_redis_that_stays_away_does_not_keep_the_claimer_from_stopping(redis_server: RedisServer) -> None:
    store = _store_on(redis_server)
    redis_server.kill()
    with ClaimerScene(store) as scene:
        scene.put("a", REQUEST)
        time.sleep(0.05)
        start = time.monotonic()
        scene.claimer.stop(20)
        assert time.monotonic() - start < 10
    store.redis.close()


def test_stopping_leaves_the_deliveries_behind_those_that_were_begun_unclaimed(
    make_store: MakeStore, connection: redis.Redis
) -> None:
    store = make_store()
    for job_id in ("a", "b"):
        submit(store, job_id, REQUEST)
    begun, stopped = threading.Event(), threading.Event()

    class Slow(PromptEncoder):
        def encode(self, request: Request, ready: Any) -> Any:
            begun.set()
            assert stopped.wait(60)
            return super().encode(request, ready)

    scene = ClaimerScene(store, Slow(TOKENIZER, ChatTemplate(TEMPLATE)))
    scene.claimer.start(READY)
    scene.put("a")
    assert begun.wait(60)
    scene.put("b")
    stopper = threading.Thread(target=scene.claimer.stop, args=(5,))
    stopper.start()
    wait_until(scene.claimer._thread.stopping.is_set)
    stopped.set()
    stopper.join()
    assert scene.begun().job_id == "a"
    assert scene.unexpected() == []
    assert connection.hget(schema.job_key("b"), "state") == b"queued"


def test_a_claimer_that_never_began_can_be_stopped(store: JobStore) -> None:
    ClaimerScene(store).claimer.stop(5)
