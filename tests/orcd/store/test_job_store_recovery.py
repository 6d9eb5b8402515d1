"""A job in Redis: leases, reaper, release, cancellation, and any history of them."""

from __future__ import annotations

import time

import redis

from orcd.events import Error, Loading, Position, Queued, decode_event
from orcd.request import Request, parse
from orcd.store import schema
from orcd.store.claim import Claim, Lease
from orcd.store.enqueue import Message
from orcd.store.job_store import Append
from orcd.store.submission import REPUBLISH_AFTER_MS
from tests.orcd.job_record import (
    REQUEST,
    Ears,
    J,
    cancel,
    field,
    is_due,
    let_lease_run_out,
    logged,
    make_due_again,
    state,
    submit,
)
from tests.orcd.job_writer import MakeStore, claimed

# -- lease, reaper, release ------------------------------------------------------------------------------------------


def test_renewing_moves_the_lease_s_end(make_store: MakeStore):
    store = make_store(lease_ms=60_000)
    submit(store, J, REQUEST)
    lease = claimed(store, J).claim.lease
    let_lease_run_out(store)
    assert store.renew({J: lease}) == {J: "renewed"}
    assert store.redis.zscore(schema.RUNNING, J) > 60_000
    assert store.claim([J])[0] == "busy"


def test_a_claim_whose_answer_was_lost_is_repeated_and_finds_the_same(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    (lost,) = store.claim([J], "print", ["token"])
    (again,) = store.claim([J], "print", ["token"])
    assert isinstance(lost, Claim) and isinstance(again, Claim)
    assert (again.lease, again.attempt) == (lost.lease, 1)
    assert store.claim([J], "print", ["other"]) == ["busy"]


def test_renewing_an_ended_or_foreign_job_says_lost_and_takes_no_lease(make_store: MakeStore):
    store = make_store()
    for job_id in ("ended", "foreign"):
        submit(store, job_id, REQUEST)
    ended, foreign = claimed(store, "ended"), claimed(store, "foreign")
    ended.end()
    let_lease_run_out(store, "foreign")
    claimed(make_store("worker-2"), "foreign")
    lease_end = store.redis.zscore(schema.RUNNING, "foreign")
    leases = {"ended": ended.claim.lease, "foreign": foreign.claim.lease, "gone": Lease(1, "x")}
    assert store.renew(leases) == {"ended": "lost", "foreign": "lost", "gone": "lost"}
    assert store.redis.zrange(schema.RUNNING, 0, -1, withscores=True) == [(b"foreign", lease_end)]


def test_the_reaper_puts_a_job_without_a_lease_back_and_says_so(make_store: MakeStore, ears: Ears):
    store = make_store()
    submit(store, J, Request(prompt="x", priority=2, model="demo"))
    claimed(store, J)
    assert store.reap() == []
    let_lease_run_out(store)
    ears.heard()
    make_store("worker-2").renew({})
    assert make_store("worker-2").reap() == [Message(J, "orcd.demo", 2, lease_lost=True)]
    assert state(store) == "queued"
    assert [decode_event(event) for event in ears.heard()] == [Queued(1, reason="waiting for a free slot")]
    assert store.reap() == []
    assert claimed(store, J).claim.attempt == 2


def test_every_lost_lease_counts_towards_poisoning_a_clean_release_does_not(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    epochs = []
    for attempt in (1, 2, 3):
        claim = claimed(store, J).claim
        assert claim.attempt == attempt
        epochs.append(claim.lease.epoch)
        let_lease_run_out(store)
        store.reap()
    for _ in range(3):
        claim = claimed(store, J).claim
        assert claim.attempt == 4
        epochs.append(claim.lease.epoch)
        assert store.release({J: claim.lease}) == [Message(J, "orcd", 5)]
    assert epochs == sorted(set(epochs))


def test_a_released_job_fences_the_worker_that_released_it(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    writer = claimed(store, J)
    writer.tokens(1)
    store.release({J: writer.claim.lease})
    assert not writer.tokens(1)
    assert store.release({J: writer.claim.lease}) == []
    assert state(store) == "queued"
    assert len(claimed(make_store("worker-2"), J).claim.log) == 1


def test_a_job_whose_message_was_lost_is_announced_again_each_time_later_and_more_urgent(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    assert store.reap() == []
    for times in (1, 2, 3):
        make_due_again(store)
        begun_ms = 1000 * time.time()
        assert store.reap() == [Message(J, "orcd", 5 - times)]
        assert is_due(store.redis.zscore(schema.QUEUED, J), begun_ms, REPUBLISH_AFTER_MS * 2**times)


def test_a_queued_job_whose_deadline_passes_is_ended_at_once_though_no_worker_has_room(make_store: MakeStore):
    store = make_store()
    submit(store, J, parse({"prompt": "x", "deadline_s": 0.5}))
    submit(store, "job-2", parse({"prompt": "x", "deadline_s": 60}))
    assert store.reap() == []
    time.sleep(0.51)
    assert store.reap() == []
    assert store.claim([J])[0] == "finished"
    [event] = store.events(J)
    assert isinstance(event, Error)
    assert event.code == "EXPIRED"
    assert store.redis.hget(schema.job_key(J), "state") == b"expired"
    assert store.redis.zrange(schema.QUEUED, 0, -1) == [b"job-2"]


def test_the_reaper_forgets_jobs_that_are_gone(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    submit(store, "job-2", REQUEST)
    claimed(store, "job-2")
    store.redis.delete(schema.job_key(J), schema.job_key("job-2"))
    make_due_again(store)
    let_lease_run_out(store, "job-2")
    assert store.reap() == []
    assert store.redis.zcard(schema.QUEUED) == store.redis.zcard(schema.RUNNING) == 0


def test_the_reaper_takes_so_many_at_a_time(make_store: MakeStore):
    store = make_store()
    for number in range(5):
        submit(store, f"job-{number}", REQUEST)
        claimed(store, f"job-{number}")
        let_lease_run_out(store, f"job-{number}")
    assert [len(store.reap(2)) for _ in range(4)] == [2, 2, 1, 0]


# -- cancellation ----------------------------------------------------------------------------------------------------


def test_a_queued_job_is_cancelled_at_once_with_a_terminal_event(make_store: MakeStore, ears: Ears):
    store = make_store()
    submit(store, J, REQUEST)
    ears.heard()
    assert cancel(store) == "cancelled"
    assert logged(store) == [("0-1", Error("CANCELLED", "cancelled", False))]
    assert [decode_event(event) for event in ears.heard()] == [Error("CANCELLED", "cancelled", False)]
    assert store.claim([J])[0] == "finished"
    assert store.redis.zcard(schema.QUEUED) == 0
    assert field(store, "finished_ms") >= field(store, "created_ms")


def test_a_job_that_waits_again_is_cancelled_behind_its_last_token(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    writer = claimed(store, J)
    writer.tokens(12)
    store.release({J: writer.claim.lease})
    assert cancel(store) == "cancelled"
    assert [entry for entry, _ in logged(store)] == ["12-0", "12-1"]


def test_a_running_job_s_owner_learns_of_the_wish_in_every_way(make_store: MakeStore, connection: redis.Redis):
    store = make_store()
    submit(store, J, REQUEST)
    writer = claimed(store, J)
    control = Ears(connection, schema.CONTROL)
    assert cancel(store) == "running"
    assert control.heard() == [b'{"cancel":"job-1"}']
    control.close()
    assert store.renew({J: writer.claim.lease}) == {J: "cancelled"}
    assert store.append([Append(J, writer.claim.lease, Position())])[0].cancelled
    let_lease_run_out(store)
    assert claimed(make_store("worker-2"), J).claim.cancelled


def test_cancelling_an_ended_job_changes_nothing(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    writer = claimed(store, J)
    writer.end()
    before = store.redis.hgetall(schema.job_key(J)), logged(store)
    assert cancel(store) == "succeeded"
    assert (store.redis.hgetall(schema.job_key(J)), logged(store)) == before


def test_cancelling_an_unknown_job_writes_nothing(make_store: MakeStore):
    store = make_store()
    assert cancel(store) == ""
    assert store.redis.keys() == []


# -- the rest --------------------------------------------------------------------------------------------------------


def test_load_progress_is_told_to_those_who_wait(make_store: MakeStore, ears: Ears):
    store = make_store()
    submit(store, J, REQUEST)
    ears.heard()
    store.announce_loading(0)
    store.announce_loading(50, 1500)
    assert [decode_event(event) for event in ears.heard()] == [Loading(0), Loading(50, 1500)]


def test_a_short_time_to_live_of_one_job_does_not_cut_that_of_the_shared_keys(make_store: MakeStore):
    long, short = make_store(ttl_s=600), make_store("worker-2", ttl_s=5)
    submit(long, "a", REQUEST)
    submit(long, "b", REQUEST)
    writer = claimed(long, "a")
    submit(short, "c", REQUEST)
    submit(short, "d", REQUEST)
    other = claimed(short, "c")
    short.renew({"c": other.claim.lease})
    short.release({"c": other.claim.lease})
    make_due_again(short, "d")
    short.reap()
    assert long.redis.ttl(schema.QUEUED) > 500
    assert long.redis.ttl(schema.RUNNING) > 500
    assert writer.tokens(1)
