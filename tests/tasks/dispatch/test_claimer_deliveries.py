"""What deliveries bring along, deliveries that wait for somebody else's job, and those that are cancelled."""

from __future__ import annotations

import time

import msgspec
import pytest
import redis

from orcd.errors import Cancelled, Expired
from orcd.store import schema
from orcd.store.enqueue import RecordedMessage
from orcd.store.job_store import JobStore
from tasks.dispatch.delivery import Repeated
from tests.orcd.job_record import submit
from tests.orcd.job_writer import MakeStore, claimed
from tests.tasks.dispatch.claimer_scene import REQUEST, ClaimerScene, error_of

CHUNK = RecordedMessage("chunk", "orcd.generate_chunk", "orcd", 5, {}, [], {"job_ids": ["a"]}, {})


def test_a_message_is_recorded_with_its_request_before_the_job_is_claimed(
    scene: ClaimerScene, store: JobStore, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F09."""
    claim = store.claim
    found: list[list[bytes]] = []

    def look_first(job_ids: list[str], fingerprint: str, tokens: list[str]) -> object:
        found.append(connection.hvals("orcd:{a}:messages"))
        return claim(job_ids, fingerprint, tokens)

    monkeypatch.setattr(store, "claim", look_first)
    scene.put("a", REQUEST, message=CHUNK)
    assert scene.begun().job_id == "a"
    ((text,),) = found
    assert msgspec.json.decode(text, type=RecordedMessage) == CHUNK


@pytest.mark.parametrize(
    ("recorded", "delivered", "limit_s"), [(None, None, None), (30, None, 30), (None, 20.0, 20.0), (30, 20.0, 20.0)]
)
def test_a_job_has_the_shortest_time_limit_of_its_messages(
    scene: ClaimerScene, recorded: int | None, delivered: float | None, limit_s: float | None
) -> None:
    message = msgspec.structs.replace(CHUNK, headers={"timelimit": [recorded, None]})
    scene.put("a", REQUEST, message=message, time_limit_s=delivered)
    assert scene.begun().time_limit_s == limit_s


def test_a_delivery_that_waits_is_answered_when_the_job_has_ended_elsewhere(
    scene: ClaimerScene, store: JobStore, make_store: MakeStore
) -> None:
    submit(store, "a", REQUEST)
    other = claimed(make_store("worker-2"), "a")
    scene.put("a", waits=True)
    time.sleep(0.3)
    assert scene.unexpected() == []
    other.start()
    other.end()
    job_id, outcome = scene.outcome()
    assert job_id == "a"
    assert isinstance(outcome, Repeated)


def test_a_delivery_that_waits_takes_a_job_over_that_lost_its_worker(
    scene: ClaimerScene, store: JobStore, make_store: MakeStore
) -> None:
    submit(store, "a", REQUEST)
    claimed(make_store("worker-2", lease_ms=300), "a")
    scene.put("a", waits=True)
    assert scene.begun().claim.attempt == 2


def test_those_that_wait_keep_no_new_ones_from_their_turn(
    scene: ClaimerScene, store: JobStore, make_store: MakeStore
) -> None:
    for index in range(40):
        submit(store, f"busy-{index}", REQUEST)
        claimed(make_store("worker-2"), f"busy-{index}")
        scene.put(f"busy-{index}", waits=True)
    for index in range(5):
        scene.put(f"new-{index}", REQUEST)
    assert [scene.begun().job_id for _ in range(5)] == [f"new-{index}" for index in range(5)]


def test_a_job_that_is_cancelled_between_its_delivery_and_its_claim_ends_so(store: JobStore) -> None:
    scene = ClaimerScene(store)
    scene.put("a", REQUEST)
    scene.put("b", REQUEST)
    assert scene.claimer.cancel("a", Cancelled("revoked"))
    assert not scene.claimer.cancel("elsewhere", Cancelled("revoked"))
    with scene:
        error = error_of(scene)
        assert (error.code, error.message) == ("CANCELLED", "revoked")
        assert scene.begun().add() is not None
        assert not scene.claimer.cancel("a", Cancelled("revoked")), "the job runner has it"


def test_a_job_in_other_hands_that_is_cancelled_here_is_cancelled_by_its_owner(
    store: JobStore, make_store: MakeStore, connection: redis.Redis
) -> None:
    submit(store, "a", REQUEST)
    claimed(make_store("worker-2"), "a")
    scene = ClaimerScene(store)
    scene.put("a")
    assert scene.claimer.cancel("a", Expired("the message expired"))
    with scene:
        assert scene.outcome() == ("a", None)
    assert connection.hget(schema.job_key("a"), "cancel") == b"1"


def test_two_deliveries_of_one_job_are_answered_once_each(scene: ClaimerScene, store: JobStore) -> None:
    scene.put("a", REQUEST)
    scene.put("a")
    scene.put("a")
    assert scene.begun().job_id == "a"
    assert [scene.outcome(), scene.outcome()] == [("a", None)] * 2


def test_what_redis_forgets_between_arriving_and_the_claim_is_written_again(
    scene: ClaimerScene, store: JobStore, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F07: a Redis that comes back from an older snapshot; the model in tests/tla finds the lost canvas."""
    claim = store.claim
    keys = [["orcd:{a}:job", "orcd:{a}:messages"], ["orcd:{a}:messages"]]

    def forget_first(job_ids: list[str], fingerprint: str, tokens: list[str]) -> object:
        if keys:
            connection.delete(*keys.pop(0))
        return claim(job_ids, fingerprint, tokens)

    monkeypatch.setattr(store, "claim", forget_first)
    scene.put("a", REQUEST, message=CHUNK)
    assert scene.begun().job_id == "a"
    assert keys == []
    (text,) = connection.hvals("orcd:{a}:messages")
    assert msgspec.json.decode(text, type=RecordedMessage) == CHUNK
