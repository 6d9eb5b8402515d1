"""Every delivery ends in a job that begins, an answer to its message, or nothing at all."""

from __future__ import annotations

import time

import pytest
import redis

from orcd.errors import InvalidRequest
from orcd.events import Error, Started, Token
from orcd.request import Request, parse
from orcd.result import fold
from orcd.store import schema
from orcd.store.job_store import JobStore
from tasks.dispatch.delivery import Repeated, Unknown
from tests.conftest import wait_until
from tests.orcd.job_record import let_lease_run_out, submit
from tests.orcd.job_writer import MakeStore, claimed
from tests.tasks.dispatch.byte_model import READY
from tests.tasks.dispatch.claimer_scene import REQUEST, ClaimerScene, error_of, events_of


def test_a_queued_job_is_claimed_encoded_and_begun(
    scene: ClaimerScene, store: JobStore, connection: redis.Redis
) -> None:
    submit(store, "a", REQUEST)
    scene.put("a")
    job = scene.begun()
    assert job.claim.attempt == 1
    (started,) = events_of(job)
    assert started == Started("a", READY.model, job.claim.claimed_ms, 1, READY.fingerprint)
    add = job.add()
    assert add is not None
    assert (add.request_id, add.prompt_ids, add.sampling.seed) == (job.request_id, tuple(b"old pond"), 1)
    assert connection.hget(schema.job_key("a"), "state") == b"running"


def test_deliveries_are_taken_in_the_order_in_which_they_came(scene: ClaimerScene, store: JobStore) -> None:
    job_ids = [f"job-{i}" for i in range(20)]
    for job_id in job_ids:
        submit(store, job_id, REQUEST)
        scene.put(job_id)
    assert [scene.begun().job_id for _ in job_ids] == job_ids


def test_deliveries_that_come_before_the_engine_is_ready_wait(store: JobStore) -> None:
    submit(store, "early", REQUEST)
    scene = ClaimerScene(store)
    scene.put("early")
    assert scene.unexpected() == []
    with scene:
        assert scene.begun().job_id == "early"


def test_a_request_in_the_message_is_written_down_then_claimed(scene: ClaimerScene, connection: redis.Redis) -> None:
    scene.put("inline", parse({"prompt": "old pond"}))
    job = scene.begun()
    assert isinstance(job.claim.request, Request)
    assert job.claim.request.seed is not None, "so that whoever resumes the job draws the same tokens"
    assert connection.hget(schema.job_key("inline"), "attempt") == b"1"


def test_a_request_that_cannot_be_stored_is_answered_with_what_is_wrong(
    scene: ClaimerScene, connection: redis.Redis
) -> None:
    scene.put("surrogate", parse({"prompt": "\ud800"}))
    job_id, outcome = scene.outcome()
    assert job_id == "surrogate"
    assert isinstance(outcome, InvalidRequest)
    assert "surrogate" in outcome.message
    assert connection.keys("orcd:*") == []


def test_a_job_that_redis_does_not_know_is_answered_as_unknown(scene: ClaimerScene) -> None:
    scene.put("never-submitted")
    assert scene.outcome() == ("never-submitted", Unknown())


def test_a_job_in_another_workers_hands_is_left_alone(
    scene: ClaimerScene, store: JobStore, make_store: MakeStore
) -> None:
    submit(store, "a", REQUEST)
    other = claimed(make_store("worker-2"), "a")
    scene.put("a")
    assert scene.outcome() == ("a", None)
    assert other.start(), "its owner still owns it"


def test_a_job_whose_owner_is_gone_goes_on_from_its_last_logged_token(
    scene: ClaimerScene, store: JobStore, make_store: MakeStore
) -> None:
    submit(store, "a", REQUEST)
    dead = claimed(make_store("worker-2", lease_ms=1), "a")
    dead.start()
    dead.write(Token("fro", 1, list(b"fro")))
    time.sleep(0.01)
    scene.put("a")
    job = scene.begun()
    assert job.claim.attempt == 2
    add = job.add()
    assert add is not None
    assert add.choices[0].output_ids == tuple(b"fro")


@pytest.mark.parametrize("fails", [False, True])
def test_a_finished_job_is_answered_with_its_result(
    scene: ClaimerScene, store: JobStore, make_store: MakeStore, fails: bool
) -> None:
    submit(store, "a", REQUEST)
    writer = claimed(make_store("worker-2"), "a")
    writer.start()
    writer.tokens(3)
    writer.fail() if fails else writer.end()
    scene.put("a")
    job_id, outcome = scene.outcome()
    assert isinstance(outcome, Repeated)
    assert outcome.result == fold(job_id, store.events("a"))
    assert (outcome.result.state, outcome.result.tokens_out) == ("failed" if fails else "succeeded", 3)


def test_a_job_that_lost_too_many_workers_is_given_up(store: JobStore, make_store: MakeStore) -> None:
    submit(store, "a", REQUEST)
    for _ in range(2):
        claimed(make_store("worker-2"), "a")
        let_lease_run_out(store, "a")
    with ClaimerScene(store, max_attempts=2) as scene:
        scene.put("a")
        assert error_of(scene) == Error("POISONED", "given up after 2 attempts that lost their worker", False)


def test_the_last_attempt_allowed_is_made(store: JobStore, make_store: MakeStore) -> None:
    submit(store, "a", REQUEST)
    claimed(make_store("worker-2", lease_ms=1), "a")
    time.sleep(0.01)
    with ClaimerScene(store, max_attempts=2) as scene:
        scene.put("a")
        assert scene.begun().add() is not None


def test_a_job_that_was_cancelled_while_its_owner_was_gone_ends_so(
    scene: ClaimerScene, store: JobStore, make_store: MakeStore, connection: redis.Redis
) -> None:
    submit(store, "a", REQUEST)
    claimed(make_store("worker-2", lease_ms=1), "a")
    connection.hset(schema.job_key("a"), "cancel", 1)
    time.sleep(0.01)
    scene.put("a")
    assert error_of(scene).code == "CANCELLED"


def test_a_deadline_that_passed_in_the_queue_ends_the_job(scene: ClaimerScene, store: JobStore) -> None:
    submit(store, "late", parse({"prompt": "old pond", "deadline_s": 0.001}))
    submit(store, "timely", parse({"prompt": "old pond", "deadline_s": 60}))
    time.sleep(0.01)
    scene.put("late")
    scene.put("timely")
    assert error_of(scene).code == "EXPIRED"
    assert scene.begun().add() is not None


def test_a_job_is_held_from_its_delivery_to_its_end_with_all_its_choices(
    scene: ClaimerScene, store: JobStore, make_store: MakeStore
) -> None:
    submit(store, "one", REQUEST)
    submit(store, "three", Request(prompt="old pond", seed=1, n=3))
    submit(store, "elsewhere", REQUEST)
    scene.put("one")
    scene.put("three")
    one, three = scene.begun(), scene.begun()
    assert scene.claimer.num_held == 4
    claimed(make_store("worker-2"), "elsewhere")
    scene.put("elsewhere", waits=True)
    wait_until(lambda: scene.claimer.num_held == 4)  # somebody else runs it
    scene.put("nothing")
    assert scene.outcome()[0] == "nothing"
    one.done(None)
    assert scene.outcome() == ("one", None)
    assert scene.claimer.num_held == 3
    three.done(None)
    assert scene.outcome() == ("three", None)
    assert scene.claimer.num_held == 0
