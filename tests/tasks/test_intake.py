"""Every delivery ends in a job that begins, an answer to its message, or nothing at all."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import Any

import pytest
import redis

from tasks import schema
from tasks.generation import Generation
from tasks.intake import Delivery, Done, Intake, Outcome, Repeated
from tasks.job import JobStore
from tasks.prompt import PromptEncoder
from tasks.redis_server import RedisServer
from tasks.request import Request, parse
from tasks.result import fold
from tasks.token_log import Error, Event, Started, Token
from tests.tasks.byte_model import ENCODER, READY, TOKENIZER
from tests.tasks.conftest import MakeStore, claimed
from worker.errors import InvalidRequest, OrcdError

REQUEST = parse({"prompt": "old pond", "seed": 1})


class Desk:
    """An intake with what it passes on: jobs that begin, and what became of the deliveries that do not."""

    def __init__(self, store: JobStore, encoder: PromptEncoder = ENCODER, max_attempts: int = 3) -> None:
        self._begun: SimpleQueue[tuple[Generation, Done]] = SimpleQueue()
        self._outcomes: SimpleQueue[tuple[str, Outcome]] = SimpleQueue()
        self.intake = Intake(store, encoder, "demo", max_attempts, lambda *job: self._begun.put(job))

    def __enter__(self) -> Desk:
        self.intake.start(READY)
        return self

    def __exit__(self, *_exception: object) -> None:
        self.intake.stop()
        assert self.unexpected() == []

    def put(self, job_id: str, request: Request | None = None) -> None:
        self.intake.put(Delivery(job_id, request, lambda outcome: self._outcomes.put((job_id, outcome))))

    def begun(self) -> Generation:
        """The next job that begins; its message is still open."""
        return self._begun.get(timeout=5)[0]

    def outcome(self) -> tuple[str, Outcome]:
        """The next delivery that was answered without beginning."""
        return self._outcomes.get(timeout=5)

    def unexpected(self) -> list[Any]:
        """What nobody has asked for."""
        left: list[Any] = []
        for queue in (self._begun, self._outcomes):
            try:
                left.append(queue.get_nowait())
            except Empty:
                continue
        return left


@pytest.fixture
def store(make_store: MakeStore) -> JobStore:
    return make_store()


@pytest.fixture
def desk(store: JobStore) -> Iterator[Desk]:
    with Desk(store) as desk:
        yield desk


def _events(generation: Generation) -> list[Event]:
    return [logged.event for logged in generation.take_append().events]


def _error(desk: Desk) -> Error:
    """The error with which the next job ends before it has begun."""
    generation = desk.begun()
    started, error = _events(generation)
    assert isinstance(started, Started)
    assert isinstance(error, Error)
    assert generation.ended
    assert generation.add() is None, "the engine hears nothing of it"
    return error


def test_a_queued_job_is_claimed_encoded_and_begun(desk: Desk, store: JobStore, connection: redis.Redis) -> None:
    store.submit("a", REQUEST)
    desk.put("a")
    generation = desk.begun()
    assert generation.claim.attempt == 1
    (started,) = _events(generation)
    assert started == Started("a", "demo", generation.claim.claimed_ms, 1)
    add = generation.add()
    assert add is not None
    assert (add.request_id, add.prompt_ids, add.sampling.seed) == (generation.request_id, tuple(b"old pond"), 1)
    assert connection.hget(schema.job_key("a"), "state") == b"running"


def test_deliveries_are_taken_in_the_order_in_which_they_came(desk: Desk, store: JobStore) -> None:
    job_ids = [f"job-{i}" for i in range(20)]
    for job_id in job_ids:
        store.submit(job_id, REQUEST)
        desk.put(job_id)
    assert [desk.begun().job_id for _ in job_ids] == job_ids


def test_deliveries_that_come_before_the_engine_is_ready_wait(store: JobStore) -> None:
    store.submit("early", REQUEST)
    desk = Desk(store)
    desk.put("early")
    assert desk.unexpected() == []
    with desk:
        assert desk.begun().job_id == "early"


def test_a_request_in_the_message_is_written_down_then_claimed(desk: Desk, connection: redis.Redis) -> None:
    desk.put("inline", parse({"prompt": "old pond"}))
    generation = desk.begun()
    assert isinstance(generation.claim.request, Request)
    assert generation.claim.request.seed is not None, "so that whoever resumes the job draws the same tokens"
    assert connection.hget(schema.job_key("inline"), "attempt") == b"1"


def test_a_request_that_cannot_be_stored_is_answered_with_what_is_wrong(desk: Desk, connection: redis.Redis) -> None:
    desk.put("lone", parse({"prompt": "\ud800"}))
    job_id, outcome = desk.outcome()
    assert job_id == "lone"
    assert isinstance(outcome, InvalidRequest)
    assert "surrogate" in outcome.message
    assert connection.keys("orcd:*") == []


def test_an_unknown_job_is_the_senders_mistake(desk: Desk) -> None:
    desk.put("never-submitted")
    job_id, outcome = desk.outcome()
    assert job_id == "never-submitted"
    assert isinstance(outcome, InvalidRequest)
    assert "never-submitted is unknown or has expired" in outcome.message


def test_a_job_in_another_workers_hands_is_left_alone(desk: Desk, store: JobStore, make_store: MakeStore) -> None:
    store.submit("a", REQUEST)
    other = claimed(make_store("worker-2"), "a")
    desk.put("a")
    assert desk.outcome() == ("a", None)
    assert other.start(), "its owner still owns it"


def test_a_job_whose_owner_is_gone_goes_on_from_its_last_logged_token(
    desk: Desk, store: JobStore, make_store: MakeStore
) -> None:
    store.submit("a", REQUEST)
    dead = claimed(make_store("worker-2", lease_ms=1), "a")
    dead.start()
    dead.write(Token("fro", 1, list(b"fro")))
    time.sleep(0.01)
    desk.put("a")
    generation = desk.begun()
    assert generation.claim.attempt == 2
    add = generation.add()
    assert add is not None
    assert add.choices[0].output_ids == tuple(b"fro")


@pytest.mark.parametrize("fails", [False, True])
def test_a_finished_job_is_answered_with_its_result(
    desk: Desk, store: JobStore, make_store: MakeStore, fails: bool
) -> None:
    store.submit("a", REQUEST)
    writer = claimed(make_store("worker-2"), "a")
    writer.start()
    writer.tokens(3)
    writer.fail() if fails else writer.end()
    desk.put("a")
    job_id, outcome = desk.outcome()
    assert isinstance(outcome, Repeated)
    assert outcome.result == fold(job_id, store.events("a"))
    assert (outcome.result.state, outcome.result.tokens_out) == ("failed" if fails else "succeeded", 3)


def test_a_job_that_lost_too_many_workers_is_given_up(store: JobStore, make_store: MakeStore) -> None:
    store.submit("a", REQUEST)
    for _ in range(2):
        claimed(make_store("worker-2", lease_ms=1), "a")
        time.sleep(0.01)
    with Desk(store, max_attempts=2) as desk:
        desk.put("a")
        assert _error(desk) == Error("POISONED", "given up after 2 attempts that lost their worker", False)


def test_the_last_attempt_allowed_is_made(store: JobStore, make_store: MakeStore) -> None:
    store.submit("a", REQUEST)
    claimed(make_store("worker-2", lease_ms=1), "a")
    time.sleep(0.01)
    with Desk(store, max_attempts=2) as desk:
        desk.put("a")
        assert desk.begun().add() is not None


def test_a_job_that_was_cancelled_while_its_owner_was_gone_ends_so(
    desk: Desk, store: JobStore, make_store: MakeStore, connection: redis.Redis
) -> None:
    store.submit("a", REQUEST)
    claimed(make_store("worker-2", lease_ms=1), "a")
    connection.hset(schema.job_key("a"), "cancel", 1)
    time.sleep(0.01)
    desk.put("a")
    assert _error(desk).code == "CANCELLED"


def test_a_deadline_that_passed_in_the_queue_ends_the_job(desk: Desk, store: JobStore) -> None:
    store.submit("late", parse({"prompt": "old pond", "deadline_s": 0.001}))
    store.submit("timely", parse({"prompt": "old pond", "deadline_s": 60}))
    time.sleep(0.01)
    desk.put("late")
    desk.put("timely")
    assert _error(desk).code == "EXPIRED"
    assert desk.begun().add() is not None


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
    desk: Desk, store: JobStore, connection: redis.Redis, field: str, request_: bytes
) -> None:
    store.submit("a", REQUEST)
    connection.hset(schema.job_key("a"), "request", request_)
    desk.put("a")
    error = _error(desk)
    assert error.code == "INVALID_REQUEST"
    assert field in error.message


def test_a_request_that_cannot_be_read_any_more_keeps_the_answers_it_had(
    desk: Desk, store: JobStore, make_store: MakeStore, connection: redis.Redis
) -> None:
    """How many choices it wanted is no longer known, but its log has two."""
    store.submit("a", parse({"prompt": "old pond", "n": 2}))
    writer = claimed(make_store("worker-2", lease_ms=1), "a")
    writer.start()
    writer.write(Token("fr", 1, list(b"fr"), choice=1))
    connection.hset(schema.job_key("a"), "request", b"{}")
    time.sleep(0.01)
    desk.put("a")
    generation = desk.begun()
    assert generation.result.error is not None
    assert [choice.text for choice in generation.result.choices] == ["fr"]


@pytest.mark.parametrize("tamper", ["log", "record"])
def test_a_record_that_is_damaged_fails_its_delivery_and_no_other(
    desk: Desk, store: JobStore, connection: redis.Redis, tamper: str
) -> None:
    for job_id in ("damaged", "sound"):
        store.submit(job_id, REQUEST)
    if tamper == "log":
        connection.xadd(schema.log_key("damaged"), {"e": b"no event"})
    else:
        connection.hset(schema.job_key("damaged"), "created_ms", "yesterday")
    desk.put("damaged")
    desk.put("sound")
    job_id, outcome = desk.outcome()
    assert job_id == "damaged"
    assert isinstance(outcome, OrcdError)
    assert outcome.code == "INTERNAL"
    assert "damaged" in outcome.message
    assert store.claim(["damaged"])[0] == "finished", "it is ended, so that nobody claims it again and again"
    assert desk.begun().job_id == "sound"


def test_what_the_encoder_refuses_fails_that_job_alone(desk: Desk) -> None:
    desk.put("long", parse({"prompt": "x" * 100}))
    desk.put("short", REQUEST)
    assert _error(desk).code == "CONTEXT_LENGTH_EXCEEDED"
    assert desk.begun().job_id == "short"


def test_a_bug_in_the_encoder_fails_that_job_alone_and_quotes_nothing(store: JobStore) -> None:
    class Broken(PromptEncoder):
        def encode(self, request: Request, ready: Any) -> Any:
            if request.prompt == "secret":
                raise KeyError(request.prompt)
            return super().encode(request, ready)

    with Desk(store, Broken(TOKENIZER, None)) as desk:
        desk.put("bad", parse({"prompt": "secret"}))
        desk.put("good", REQUEST)
        error = _error(desk)
        assert (error.code, error.message) == ("INTERNAL", "the prompt could not be encoded (KeyError)")
        assert desk.begun().job_id == "good"


def _store_on(server: RedisServer) -> JobStore:
    connection = redis.Redis.from_url(server.url, socket_timeout=1)
    return JobStore(connection, owner="worker-1", model="demo", lease_ms=60_000, ttl_s=600)


def test_while_redis_is_away_deliveries_wait(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.intake.RETRY_S", 0.02)
    store = _store_on(redis_server)
    store.submit("a", REQUEST)
    with Desk(store) as desk:
        redis_server.kill()
        desk.put("a")
        desk.put("b", REQUEST)
        time.sleep(0.1)
        assert desk.unexpected() == []
        redis_server.start()
        assert [desk.begun().job_id, desk.begun().job_id] == ["a", "b"]
    store.redis.close()


def test_a_redis_that_stays_away_does_not_keep_the_intake_from_stopping(redis_server: RedisServer) -> None:
    store = _store_on(redis_server)
    redis_server.kill()
    with Desk(store) as desk:
        desk.put("a", REQUEST)
        time.sleep(0.05)
        start = time.monotonic()
        desk.intake.stop()
        assert time.monotonic() - start < 2
    store.redis.close()


def test_stopping_leaves_the_deliveries_behind_those_in_hand_unclaimed(
    make_store: MakeStore, connection: redis.Redis
) -> None:
    store = make_store()
    for job_id in ("a", "b"):
        store.submit(job_id, REQUEST)
    in_hand, stopped = threading.Event(), threading.Event()

    class Slow(PromptEncoder):
        def encode(self, request: Request, ready: Any) -> Any:
            in_hand.set()
            assert stopped.wait(5)
            return super().encode(request, ready)

    desk = Desk(store, Slow(TOKENIZER, None))
    desk.intake.start(READY)
    desk.put("a")
    assert in_hand.wait(5)
    desk.put("b")
    stopper = threading.Thread(target=desk.intake.stop)
    stopper.start()
    time.sleep(0.05)
    stopped.set()
    stopper.join()
    assert desk.begun().job_id == "a"
    assert desk.unexpected() == []
    assert connection.hget(schema.job_key("b"), "state") == b"queued"


def test_an_intake_that_never_began_can_be_stopped(store: JobStore) -> None:
    Desk(store).intake.stop()
