"""A job in Redis: who may write its log, and what a log takes."""

from __future__ import annotations

import time

import pytest
import redis

from orcd.events import Error, Position, Token, decode_event
from orcd.store import schema
from orcd.store.claim import Lease
from orcd.store.job_store import Append
from orcd.store.token_log import LoggedEvent
from tests.orcd.job_record import (
    REQUEST,
    Ears,
    J,
    cancel,
    field,
    let_lease_run_out,
    logged,
    state,
    submit,
)
from tests.orcd.job_writer import MakeStore, claimed


def test_a_worker_that_lost_its_lease_can_write_nothing(make_store: MakeStore, ears: Ears):
    store = make_store()
    submit(store, J, REQUEST)
    old = claimed(store, J)
    old.tokens(1)
    let_lease_run_out(store)
    new = claimed(make_store("worker-2"), J)
    before, _ = logged(store), ears.heard()
    assert not old.tokens(1)
    assert not old.end()
    assert logged(store) == before
    assert ears.heard() == []
    assert state(store) == "running"
    assert new.tokens(1)


def test_the_owner_of_a_job_that_redis_forgot_cannot_write_into_its_successor(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    old = claimed(store, J)
    store.redis.flushall()  # it came back without its data, and the client submitted the same id again
    time.sleep(0.01)
    submit(store, J, REQUEST)
    new = claimed(make_store("worker-2"), J)
    assert not old.tokens(1)
    assert store.renew({J: old.claim.lease}) == {J: "lost"}
    assert new.tokens(1)


def test_a_worker_is_fenced_as_soon_as_its_job_is_back_in_the_queue(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    writer = claimed(store, J)
    let_lease_run_out(store)
    store.reap()
    assert not writer.tokens(1)
    assert store.renew({J: writer.claim.lease}) == {J: "lost"}


def test_a_late_append_is_taken_while_nobody_else_has_the_job(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    writer = claimed(store, J)
    let_lease_run_out(store)
    assert writer.tokens(1)


def test_an_append_to_a_job_that_is_gone_is_refused(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    writer = claimed(store, J)
    store.redis.delete(schema.job_key(J))
    assert not writer.tokens(1)
    assert logged(store) == []


def test_a_repeated_append_is_neither_logged_nor_published_again(make_store: MakeStore, ears: Ears):
    store = make_store()
    submit(store, J, REQUEST)
    lease = claimed(store, J).claim.lease
    event = LoggedEvent(Position(1, 0), Token("a", 1, [5]))
    more = LoggedEvent(Position(2, 0), Token("b", 2, [6]))
    ears.heard()
    assert store.append([Append(J, lease, Position(), [event])])[0].num_listeners == 1
    assert store.append([Append(J, lease, Position(), [event, more])])[0].status == "appended"
    assert [decode_event(event) for event in ears.heard()] == [Token("a", 1, [5]), Token("b", 2, [6])]
    assert logged(store) == [("1-0", event.event), ("2-0", more.event)]


def test_redis_itself_refuses_an_older_entry(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    lease = claimed(store, J).claim.lease
    store.append([Append(J, lease, Position(), [LoggedEvent(Position(5, 1), Token("a", 5, [5]))])])
    for n, k in ((5, 1), (5, 0), (4, 9)):
        store.append([Append(J, lease, Position(5, 1), [LoggedEvent(Position(n, k), Token("b", n, [6]))])])
        with pytest.raises(redis.ResponseError, match="equal or smaller"):
            store.redis.xadd(schema.log_key(J), {"e": "x"}, id=f"{n}-{k}")
    assert [entry for entry, _ in logged(store)] == ["5-1"]


def test_an_ended_job_takes_no_more_events_not_even_from_its_owner(make_store: MakeStore, ears: Ears):
    store = make_store()
    submit(store, J, REQUEST)
    writer = claimed(store, J)
    writer.tokens(1)
    writer.end()
    before, finished_ms, _ = logged(store), field(store, "finished_ms"), ears.heard()
    time.sleep(0.002)
    writer.tokens(1)
    writer.fail()
    assert logged(store) == before
    assert ears.heard() == []
    assert (state(store), field(store, "finished_ms")) == ("succeeded", finished_ms)


def test_an_end_that_is_repeated_after_a_lost_answer_counts_as_written(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    lease = claimed(store, J).claim.lease
    end = Append(J, lease, Position(), [LoggedEvent(Position(0, 1), Error("INTERNAL", "it broke", False))], "failed")
    assert store.append([end])[0].status == "appended"
    assert store.append([end])[0].status == "appended"
    assert len(logged(store)) == 1


def test_one_append_serves_many_jobs_each_on_its_own_terms(make_store: MakeStore):
    store = make_store()
    for job_id in ("a", "b", "c"):
        submit(store, job_id, REQUEST)
    leases = {job_id: claimed(store, job_id).claim.lease for job_id in ("a", "b", "c")}
    cancel(store, "c")
    token = LoggedEvent(Position(1, 0), Token("x", 1, [1]))
    end = LoggedEvent(Position(1, 1), Error("INTERNAL", "it broke", False))
    answers = store.append(
        [
            Append("a", leases["a"], Position(), [token, end], "failed"),
            Append("b", Lease(leases["b"].epoch - 1, leases["b"].token), Position(), [token]),
            Append("c", leases["c"], Position(), [token]),
        ]
    )
    assert [(answer.status, answer.cancelled) for answer in answers] == [
        *(("appended", False), ("fenced", False), ("appended", True)),
    ]
    assert [state(store, job_id) for job_id in ("a", "b", "c")] == ["failed", "running", "running"]
    assert [len(logged(store, job_id)) for job_id in ("a", "b", "c")] == [2, 0, 1]


def test_the_first_token_s_time_is_kept_once(make_store: MakeStore):
    store = make_store()
    submit(store, J, REQUEST)
    writer = claimed(store, J)
    writer.start()
    assert store.redis.hget(schema.job_key(J), "first_token_ms") is None
    writer.tokens(1)
    first = field(store, "first_token_ms")
    time.sleep(0.002)
    writer.tokens(1)
    assert field(store, "first_token_ms") == first
