"""A job in Redis: submission and claim, and the store as a whole."""

from __future__ import annotations

import pytest
import redis

from orcd.errors import Conflict, InvalidRequest
from orcd.events import Position, Queued, decode_event
from orcd.request import Request
from orcd.store import schema
from orcd.store.claim import Claim, Lease
from orcd.store.job_store import JobStore
from orcd.store.submission import REPUBLISH_AFTER_MS
from tests.orcd.job_record import (
    REQUEST,
    Ears,
    J,
    field,
    let_lease_run_out,
    logged,
    state,
    submit,
)
from tests.orcd.job_writer import MakeStore, claimed

# -- submission ------------------------------------------------------------------------------------------------------


def test_submitting_writes_a_queued_record_and_says_so(make_store: MakeStore, ears: Ears):
    store = make_store()
    store.renew({})
    submit(store, J, REQUEST)
    assert state(store) == "queued"
    assert field(store, "attempt") == 0
    assert store.redis.zscore(schema.QUEUED, J) == pytest.approx(field(store, "created_ms") + REPUBLISH_AFTER_MS)
    assert [decode_event(event) for event in ears.heard()] == [Queued(1, reason="waiting for a free slot")]


def test_submitting_an_existing_id_changes_nothing(make_store: MakeStore, ears: Ears):
    store = make_store()
    submit(store, J, REQUEST)
    before = store.redis.hgetall(schema.job_key(J))
    ears.heard()
    submit(store, J, REQUEST)
    with pytest.raises(Conflict, match="job job-1: the id belongs to another request"):
        submit(store, J, Request(prompt="Something else."))
    assert store.redis.hgetall(schema.job_key(J)) == before
    assert ears.heard() == []


def test_a_job_does_not_inherit_the_log_of_an_expired_one_with_its_id(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    claimed(store, J).tokens(3)
    store.redis.delete(schema.job_key(J))  # its time to live is over a little before the log's
    submit(store, J, REQUEST)
    writer = claimed(store, J)
    assert writer.claim.log == ()
    writer.tokens(1)
    assert [entry for entry, _ in logged(store)] == ["1-0"]


def test_a_request_without_a_seed_gets_one_that_stays(make_store: MakeStore):
    store = make_store()
    submit(store, J, Request(prompt="x"))
    first = claimed(store, J).claim.request
    let_lease_run_out(store)
    second = claimed(make_store("worker-2"), J).claim.request
    assert isinstance(first, Request)
    assert first.seed is not None
    assert first == second


def test_a_deadline_counts_from_submission_and_outlives_the_time_to_live(make_store: MakeStore):
    store = make_store(ttl_s=10)
    submit(store, J, Request(prompt="x", deadline_s=1000))
    assert field(store, "deadline_ms") == field(store, "created_ms") + 1_000_000
    assert store.redis.ttl(schema.job_key(J)) > 900


@pytest.mark.parametrize("job_id", ["", "a b", "a{b}", "ä", "a/b", "a\n", "a" * 129, None, 7])
def test_a_malformed_job_id_is_refused_before_anything_is_written(make_store: MakeStore, job_id):
    store = make_store()
    with pytest.raises(InvalidRequest, match="job_id: must be 1 to 128"):
        submit(store, job_id, REQUEST)
    assert store.redis.keys() == []


# -- claim -----------------------------------------------------------------------------------------------------------


def test_a_claim_hands_out_the_request_a_lease_and_a_new_epoch(make_store: MakeStore):
    store = make_store(lease_ms=5_000)
    submit(store, J, REQUEST)
    epoch = field(store, "epoch")
    claim = store.claim([J])[0]
    assert isinstance(claim, Claim)
    assert (claim.request, claim.attempt, claim.log, claim.cancelled) == (REQUEST, 1, (), False)
    assert claim.lease == Lease(epoch + 1, store.redis.hget(schema.job_key(J), "token").decode())
    assert claim.created_ms <= claim.started_ms == claim.claimed_ms
    assert claim.first_token_ms is None
    assert store.redis.zscore(schema.RUNNING, J) == claim.claimed_ms + 5_000
    assert store.redis.zscore(schema.QUEUED, J) is None
    assert state(store) == "running"


def test_an_unknown_job_cannot_be_claimed(make_store: MakeStore):
    assert make_store().claim(["nothing"])[0] == "unknown"


def test_of_many_jobs_each_gets_its_own_answer(make_store: MakeStore):
    store = make_store()
    for job_id in ("busy", "free", "last"):
        submit(store, job_id, REQUEST)
    claimed(make_store("worker-2"), "busy")
    answers = store.claim(["free", "nothing", "busy", "last", "free"])
    assert [answer.job_id if isinstance(answer, Claim) else answer for answer in answers] == [
        *("free", "unknown", "busy", "last"),
        "busy",
    ]
    assert store.claim([]) == []


def test_a_duplicate_delivery_of_a_running_job_finds_it_busy(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    writer = claimed(store, J)
    assert make_store("worker-2").claim([J])[0] == "busy"
    assert store.claim([J])[0] == "busy"
    assert writer.start()


def test_a_job_for_another_model_is_left_to_its_workers(make_store: MakeStore):
    """F09: a message in the wrong queue made whatever model was there answer."""
    store = make_store()
    submit(store, "other", Request(prompt="x", model="other"))
    submit(store, "own", Request(prompt="x", model="demo"))
    assert store.claim(["other"]) == ["busy"]
    assert state(store, "other") == "queued"
    assert isinstance(store.claim(["own"])[0], Claim)


def test_a_duplicate_delivery_of_an_ended_job_finds_it_finished(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    writer = claimed(store, J)
    writer.start()
    writer.end()
    before = logged(store)
    assert store.claim([J])[0] == "finished"
    assert logged(store) == before


def test_who_takes_over_gets_the_log_and_the_first_start(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    first = claimed(store, J)
    first.start()
    first.tokens(2)
    first.tokens(1)
    let_lease_run_out(store)
    claim = claimed(make_store("worker-2"), J).claim
    assert (claim.attempt, claim.started_ms) == (2, first.claim.started_ms)
    assert claim.lease.epoch > first.claim.lease.epoch
    assert claim.lease.token != first.claim.lease.token
    assert [entry.position for entry in claim.log] == [Position(0, 1), Position(2, 0), Position(3, 0)]
    assert [entry.event.ids for entry in claim.log[1:]] == [[101, 102], [103]]
    assert claim.first_token_ms is not None
    assert claim.first_token_ms >= claim.started_ms


def test_a_stored_request_that_cannot_be_read_comes_as_an_error(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    store.redis.hset(schema.job_key(J), "request", b'{"prompt": "x", "from_the_future": 1}')
    claim = store.claim([J])[0]
    assert isinstance(claim, Claim)
    assert isinstance(claim.request, InvalidRequest)
    assert "from_the_future" in claim.request.message


# -- the store as a whole -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["append", "release", "arrive"])
def test_nothing_to_do_needs_no_redis(call: str):
    store = JobStore(redis.Redis(port=1), owner="w", model="m", lease_ms=1, ttl_s=1)
    assert not getattr(store, call)({} if call == "release" else [])
    store.answered({})


def test_scripts_are_loaded_again_into_a_redis_that_forgot_them(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    store.redis.script_flush()
    assert claimed(store, J).start()
