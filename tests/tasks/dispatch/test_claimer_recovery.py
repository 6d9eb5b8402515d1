"""No fault of Redis, of a log or of ours ends the claimer, or answers a delivery twice or never (F05)."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from orcd.errors import InvalidRequest, LogDamaged, OrcdError
from orcd.request import Request, parse
from orcd.store import schema
from orcd.store.claim import Claim
from orcd.store.enqueue import RecordedMessage
from orcd.store.job_store import JobStore
from tasks.dispatch import claimer as module
from tasks.dispatch.active_job import ActiveJob
from tasks.dispatch.delivery import Repeated
from tasks.dispatch.prompt_encoder import PromptEncoder
from tests.orcd.job_record import submit
from tests.orcd.job_writer import MakeStore, claimed
from tests.tasks.dispatch.byte_model import TEMPLATE, TOKENIZER
from tests.tasks.dispatch.claimer_scene import REQUEST, ClaimerScene
from worker.text.chat_template import ChatTemplate

ERRORS = [redis.ConnectionError("away"), redis.TimeoutError("slow"), redis.ReadOnlyError("replica")]


def fail_at_first(monkeypatch: pytest.MonkeyPatch, store: JobStore, name: str, *errors: Exception) -> None:
    """Let a method of the store raise these errors, one at each call, before it works."""
    left, works = iter(errors), getattr(store, name)

    def method(*arguments: Any) -> Any:
        for error in left:
            raise error
        return works(*arguments)

    monkeypatch.setattr(store, name, method)


@pytest.mark.parametrize("name", ["arrive", "claim"])
def test_a_redis_error_in_the_middle_of_a_batch_answers_nobody_twice(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fail_at_first(monkeypatch, store, name, *ERRORS)
    scene = ClaimerScene(store)
    scene.put("refused", parse({"prompt": "\ud800"}))
    scene.put("a", REQUEST)
    with scene:
        job_id, outcome = scene.outcome()
        assert (job_id, getattr(outcome, "code", None)) == ("refused", "INVALID_REQUEST")
        assert scene.begun().job_id == "a"
        time.sleep(0.1)
        assert scene.unexpected() == []
    assert {event.get("doing", event["event"]) for event in scene.log_events()} == {name, "refused"}


def test_a_finished_job_is_read_again_where_redis_failed(
    scene: ClaimerScene, store: JobStore, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(store, "a", REQUEST)
    writer = claimed(make_store("worker-2"), "a")
    writer.start()
    writer.end()
    fail_at_first(monkeypatch, store, "events", *ERRORS)
    scene.put("a")
    assert isinstance(scene.outcome()[1], Repeated)


def test_a_finished_job_whose_log_cannot_be_read_is_answered_with_that(
    scene: ClaimerScene, store: JobStore, make_store: MakeStore, connection: redis.Redis
) -> None:
    submit(store, "a", REQUEST)
    writer = claimed(make_store("worker-2"), "a")
    writer.start()
    writer.end()
    connection.xadd(schema.log_key("a"), {"e": b"an event of tomorrow"})
    scene.put("a")
    scene.put("b", REQUEST)
    job_id, outcome = scene.outcome()
    assert (job_id, type(outcome)) == ("a", LogDamaged)
    assert scene.begun().job_id == "b"


@pytest.mark.parametrize("key", [schema.job_key("bad"), schema.log_key("bad")])
def test_one_jobs_key_of_another_type_keeps_no_other_from_its_turn(
    scene: ClaimerScene, store: JobStore, connection: redis.Redis, key: str
) -> None:
    submit(store, "bad", REQUEST)
    connection.delete(key)
    connection.rpush(key, "of", "another", "type")
    scene.put("bad")
    scene.put("good", REQUEST)
    job_id, outcome = scene.outcome()
    assert (job_id, type(outcome)) == ("bad", LogDamaged)
    assert scene.begun().job_id == "good"


def test_a_job_of_a_newer_version_is_left_alone(scene: ClaimerScene, store: JobStore, connection: redis.Redis) -> None:
    submit(store, "a", REQUEST)
    connection.hset(schema.job_key("a"), "schema", 99)
    scene.put("a")
    assert scene.outcome() == ("a", None)
    assert connection.hget(schema.job_key("a"), "state") == b"queued"


def test_a_message_that_cannot_be_written_down_is_refused_alone(scene: ClaimerScene) -> None:
    message = RecordedMessage("a", "orcd.generate", "orcd", 5, {"x-trace": "\ud800"}, [], {"job_id": "a"}, {})
    scene.put("a", REQUEST, message=message)
    scene.put("b", REQUEST)
    job_id, outcome = scene.outcome()
    assert (job_id, type(outcome)) == ("a", InvalidRequest)
    assert scene.begun().job_id == "b"


def test_a_bug_at_the_begin_of_a_job_ends_that_job_alone(
    scene: ClaimerScene, store: JobStore, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(ActiveJob):
        def __init__(self, claim: Claim, *arguments: Any) -> None:
            if claim.job_id == "bad":
                raise KeyError("Kanarienvogel")
            super().__init__(claim, *arguments)

    monkeypatch.setattr(module, "ActiveJob", Broken)
    scene.put("bad", REQUEST)
    scene.put("good", REQUEST)
    job_id, outcome = scene.outcome()
    assert (job_id, type(outcome)) == ("bad", OrcdError)
    assert connection.hget(schema.job_key("bad"), "state") == b"failed"
    assert scene.begun().job_id == "good"
    (said,) = scene.log_events()
    assert (said["cause"], said["code"]) == ("KeyError", "INTERNAL")
    assert "Kanarienvogel" not in str(said)


def test_jobs_keep_their_leases_while_the_prompts_before_theirs_are_encoded(make_store: MakeStore) -> None:
    store = make_store(lease_ms=400)

    class Slow(PromptEncoder):
        def encode(self, request: Request, ready: Any) -> Any:
            time.sleep(0.5)
            return super().encode(request, ready)

    scene = ClaimerScene(store, Slow(TOKENIZER, ChatTemplate(TEMPLATE)), lease_ms=400)
    for job_id in ("a", "b", "c"):
        submit(store, job_id, REQUEST)
        scene.put(job_id)
    scene.leases.start()
    with scene:
        assert [scene.begun().job_id for _ in range(3)] == ["a", "b", "c"]
        assert make_store("worker-2", lease_ms=400).claim(["a", "b", "c"]) == ["busy"] * 3
    scene.leases.stop(5)
