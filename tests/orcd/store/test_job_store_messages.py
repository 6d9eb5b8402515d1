"""Messages that are kept beside a job's record until somebody has answered them: a canvas goes on whoever dies."""

from __future__ import annotations

import json
import time

import msgspec
import pytest
import redis

from orcd.errors import Cancelled, Conflict, Expired, InvalidRequest
from orcd.request import Request
from orcd.store import schema
from orcd.store.enqueue import Message
from orcd.store.job_store import Arrival, JobStore
from tests.orcd.job_record import (
    REQUEST,
    J,
    cancel,
    is_due,
    let_lease_run_out,
    make_due_again,
    recorded,
    state,
    submit,
)
from tests.orcd.job_writer import MakeStore, claimed

LEASE_MS = 60_000


def unanswered(store: JobStore, job_id: str = J) -> float | None:
    """When the job's messages are published again; None: they need not be."""
    return store.redis.zscore(schema.UNANSWERED, job_id)


def let_answer_fail(store: JobStore, job_id: str = J) -> None:
    store.redis.zadd(schema.UNANSWERED, {job_id: 1})


@pytest.fixture
def store(make_store: MakeStore) -> JobStore:
    """With the job `J`, brought by the message ``task``."""
    store = make_store(lease_ms=LEASE_MS)
    assert store.arrive([Arrival(J, REQUEST, recorded("task", J))]) == [None]
    return store


# -- arrival ---------------------------------------------------------------------------------------------------------


def test_what_came_with_a_message_is_written_before_the_claim(store: JobStore):
    """F09: the request of a message in the hands of a worker that died was lost for an hour."""
    assert state(store) == "queued"
    assert store.claim([J])[0].request == REQUEST
    (text,) = store.redis.hvals(schema.messages_key(J))
    assert json.loads(text)["headers"] == {"root_id": "root"}
    assert b"Say something" not in text


def test_arriving_again_is_harmless_and_another_request_a_conflict(store: JobStore):
    again, other, broken, unknown = store.arrive(
        [
            Arrival(J, REQUEST, recorded("task", J)),
            Arrival(J, Request(prompt="Another."), recorded("other", J)),
            Arrival("not an id", REQUEST, None),
            Arrival("unknown", None, recorded("unknown")),
        ]
    )
    assert again is None
    assert isinstance(other, Conflict)
    assert isinstance(broken, InvalidRequest)
    assert unknown is None
    assert store.redis.hkeys(schema.messages_key(J)) == [b"task"]
    assert not store.redis.exists(schema.messages_key("unknown"))


def test_a_message_of_another_id_may_wait_for_the_same_job(store: JobStore):
    assert store.arrive([Arrival(J, None, recorded("second", J))]) == [None]
    assert sorted(store.redis.hkeys(schema.messages_key(J))) == [b"second", b"task"]


def test_the_shortest_limit_of_a_job_s_messages_comes_with_its_claim(store: JobStore):
    store.arrive([Arrival(J, None, recorded("second", J, timelimit=[60, None]))])
    store.arrive([Arrival(J, None, recorded("third", J, timelimit=[90, 30.5]))])
    assert store.claim([J])[0].time_limit_s == 30.5


# -- jobs that go back into the queue --------------------------------------------------------------------------------


def test_a_job_that_is_given_back_is_announced_by_its_recorded_messages(store: JobStore):
    """F08: the message that a release or the reaper published had no canvas."""
    writer = claimed(store, J)
    assert store.release({J: writer.claim.lease}) == [Message(J, "orcd", 5, recorded=(recorded("task", J),))]
    claimed(store, J)
    let_lease_run_out(store)
    assert store.reap() == [Message(J, "orcd", 5, lease_lost=True, recorded=(recorded("task", J),))]
    make_due_again(store)
    assert store.reap() == [Message(J, "orcd", 4, recorded=(recorded("task", J),))]


def test_a_chunk_s_message_is_published_once_for_all_of_its_jobs(store: JobStore):
    """F08: a chunk whose worker hands over."""
    chunk = recorded("chunk", "a", "b", "c")
    for job_id in ("a", "b", "c"):
        submit(store, job_id)
    store.arrive([Arrival(job_id, None, chunk) for job_id in ("a", "b", "c")])
    leases = {job_id: claimed(store, job_id).claim.lease for job_id in ("a", "b", "c")}
    assert store.release(leases) == [Message("a", "orcd", 5, recorded=(chunk,))]


# -- ended jobs ------------------------------------------------------------------------------------------------------


def test_an_ended_job_s_messages_are_published_until_somebody_answers_them(store: JobStore):
    """F08: a worker that died between a job's last event and its result left the chain standing."""
    begun_ms = 1000 * time.time()
    claimed(store, J).end()
    assert is_due(unanswered(store), begun_ms, LEASE_MS)
    assert store.reap() == []
    for times in (1, 2):
        let_answer_fail(store)
        begun_ms = 1000 * time.time()
        assert store.reap() == [Message(J, "orcd", 5, recorded=(recorded("task", J),))]
        assert is_due(unanswered(store), begun_ms, 15_000 * 2**times)
    store.answered({J: recorded("task", J)})
    assert unanswered(store) is None
    assert not store.redis.exists(schema.messages_key(J))
    assert store.reap() == []


def test_only_the_last_answer_leaves_nothing_to_do(store: JobStore):
    store.arrive([Arrival(J, None, recorded("second", J))])
    claimed(store, J).end()
    store.answered({J: recorded("task", J)})
    let_answer_fail(store)
    assert store.reap() == [Message(J, "orcd", 5, recorded=(recorded("second", J),))]
    store.answered({J: recorded("second", J)})
    assert unanswered(store) is None


def test_another_message_that_came_under_the_same_id_is_answered_for_itself(store: JobStore):
    """A sender whose chord was refused in the middle sends it again: the same ids, and another chord that counts."""
    claimed(store, J).end()
    again = msgspec.structs.replace(recorded("task", J), embed={"chord": {"task": "another"}})
    store.arrive([Arrival(J, None, again)])
    store.answered({J: recorded("task", J)})
    let_answer_fail(store)
    assert store.reap() == [Message(J, "orcd", 5, recorded=(again,))]
    store.answered({J: again})
    assert unanswered(store) is None


def test_a_message_whose_result_redis_has_forgotten_is_answered_again(store: JobStore):
    """Redis came back from an older snapshot between the two: nothing was left to tell that the result was missing."""
    claimed(store, J).end()
    store.answered({J: recorded("task", J)}, [J], "result")
    let_answer_fail(store)
    assert store.reap() == [Message(J, "orcd", 5, recorded=(recorded("task", J),))]
    store.redis.set("result", "x")
    store.answered({J: recorded("task", J)}, [J], "result")
    assert unanswered(store) is None


def test_a_message_is_kept_where_redis_has_forgotten_the_end_of_one_of_its_jobs(store: JobStore):
    """Its links are followed before its result is stored: what they sent is forgotten, too."""
    submit(store, "other")
    chunk = recorded("chunk", "other", J)
    store.arrive([Arrival(J, None, chunk)])
    store.answered({J: recorded("task", J)})
    claimed(store, J).end()
    writer = claimed(store, "other")
    store.answered({J: chunk}, ["other", J])
    let_answer_fail(store)
    assert store.reap() == [Message(J, "orcd", 5, recorded=(chunk,))]
    writer.end()
    store.answered({J: chunk}, ["other", "gone", J])
    assert unanswered(store) is None


def test_all_that_is_kept_of_a_message_goes_at_once(store: JobStore):
    """A chunk's limits are with each of its jobs."""
    submit(store, "other")
    records = {"other": recorded("other", timelimit=[9, 5]), J: recorded("chunk", "other", J)}
    store.arrive([Arrival(job_id, None, record) for job_id, record in records.items()])
    for job_id in ("other", J):
        claimed(store, job_id).end()
    store.answered(records, ["other", J])
    assert unanswered(store, "other") is None
    assert store.redis.hkeys(schema.messages_key(J)) == [b"task"]


def test_a_job_without_recorded_messages_needs_no_answer(store: JobStore):
    submit(store, "plain")
    claimed(store, "plain").end()
    store.answered({J: recorded("task", J)})
    claimed(store, J).end()
    assert store.redis.zcard(schema.UNANSWERED) == 0


def test_a_message_that_comes_after_the_end_is_kept_until_it_is_answered(store: JobStore):
    claimed(store, J).end()
    store.answered({J: recorded("task", J)})
    assert store.arrive([Arrival(J, None, recorded("late", J))]) == [None]
    assert unanswered(store) is not None
    let_answer_fail(store)
    assert store.reap() == [Message(J, "orcd", 5, recorded=(recorded("late", J),))]


@pytest.mark.parametrize("way", ["client", "deadline", "damage"])
def test_a_job_that_nobody_ran_has_its_messages_answered_too(store: JobStore, redis_url: str, way: str):
    """F10, F11: the chain learns of the end whoever ended the job."""
    if way == "client":
        script = store.redis.register_script(schema.script("cancel"))
        script([], [J, b'{"type":"error","code":"CANCELLED","message":"x","retriable":false}', "cancelled", 0])
    elif way == "deadline":
        store.redis.hset(schema.job_key(J), "deadline_ms", 1)
        make_due_again(store)
        store.reap()
        let_answer_fail(store)
    else:
        store.redis.hset(schema.job_key(J), "attempt", "?")
        store.claim([J])
    time.sleep(0.002)
    assert store.reap() == [Message(J, "orcd", 5, recorded=(recorded("task", J),))]


@pytest.mark.parametrize("way", ["deadline", "cancel"])
def test_who_waits_for_a_job_of_a_model_that_nobody_serves_is_answered_by_a_worker_of_any_model(
    store: JobStore, way: str
):
    """F08: its message was in a queue that nobody reads, and its Celery result stayed PENDING for ever."""
    request = Request(prompt="x", seed=1, model="nobodys")
    linked = msgspec.structs.replace(recorded("linked"), queue="orcd.nobodys")
    store.arrive([Arrival("plain", request, None), Arrival("linked", request, linked)])
    for job_id in ("plain", "linked"):
        if way == "cancel":
            cancel(store, job_id)
        else:
            store.redis.hset(schema.job_key(job_id), "deadline_ms", 1)
            make_due_again(store, job_id)
    store.reap()
    for job_id in ("plain", "linked"):
        let_answer_fail(store, job_id)
    moved = msgspec.structs.replace(linked, queue="orcd")
    assert {message.job_id: message for message in store.reap()} == {
        "plain": Message("plain", "orcd", 5),
        "linked": Message("linked", "orcd", 5, recorded=(moved,)),
    }
    assert (unanswered(store, "plain"), unanswered(store, "linked") is None) == (None, False)


def test_messages_of_jobs_that_are_gone_are_forgotten(store: JobStore):
    claimed(store, J).end()
    store.redis.delete(schema.messages_key(J), schema.job_key(J))
    let_answer_fail(store)
    assert store.reap() == []
    assert store.redis.zcard(schema.UNANSWERED) == 0


def test_messages_live_as_long_as_their_job(make_store: MakeStore):
    store = make_store(ttl_s=60)
    store.arrive([Arrival(J, REQUEST, recorded("task", J))])
    assert store.redis.ttl(schema.messages_key(J)) > 24 * 3600
    claimed(store, J).end()
    assert store.redis.ttl(schema.messages_key(J)) <= 60


# -- revocation ------------------------------------------------------------------------------------------------------


def test_a_worker_ends_a_queued_job_with_the_error_that_it_was_told(store: JobStore, connection: redis.Redis):
    """F10: Celery said REVOKED, and the stream never ended."""
    submit(store, "late")
    assert store.cancel(J, Cancelled("revoked")) == "cancelled"
    assert store.cancel("late", Expired("the message expired")) == "expired"
    assert [event.code for job_id in (J, "late") for event in store.events(job_id)] == ["CANCELLED", "EXPIRED"]
    assert store.cancel(J, Cancelled("revoked")) == "cancelled"
    assert store.cancel("gone", Cancelled("revoked")) == ""


def test_a_running_job_that_is_revoked_is_ended_by_its_owner(store: JobStore):
    writer = claimed(store, J)
    assert store.cancel(J, Cancelled("revoked")) == "running"
    assert store.renew({J: writer.claim.lease}) == {J: "cancelled"}
