"""Cancelled or overdue, a job that nobody works on is ended once by whoever looks first, with the text so far."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import redis

from orcd.client import Client
from orcd.events import Error, state_after
from orcd.request import parse
from orcd.store import schema
from orcd.store.job_store import JobStore
from tests.orcd.job_record import (
    Ears,
    J,
    cancel,
    let_lease_run_out,
    logged,
    make_due_again,
    set_deadline,
    state,
    submit,
)
from tests.orcd.job_writer import MakeStore, Writer, claimed

Look = Callable[[Client, JobStore], object]

DEADLINE_S = 0.1

LOOKS: dict[str, Look] = {
    "a client asks": lambda client, _: client.status(J),
    "a client follows": lambda client, _: client.result(J, timeout=60),
    "a worker reaps": lambda _, store: store.reap(),
}


@pytest.fixture
def store(make_store: MakeStore) -> JobStore:
    return make_store()


@pytest.fixture(params=LOOKS, ids=LOOKS.keys())
def look(request: pytest.FixtureRequest) -> Look:
    return LOOKS[request.param]


def begun(store: JobStore) -> Writer:
    """A job that runs, with two tokens in its log."""
    submit(store, J)
    writer = claimed(store, J)
    writer.start()
    writer.tokens(2)
    return writer


def check_ended(client: Client, store: JobStore, final: str, code: str, text: str = " 1 2") -> None:
    """It has one terminal event, behind the text so far, and is on no list."""
    result = client.result(J, timeout=60)
    assert (result.state, result.text) == (final, text)
    events = [event for _, event in logged(store)]
    (end,) = [event for event in events if state_after(event)]
    assert events[-1] == end
    assert isinstance(end, Error)
    assert end.code == code
    assert state(store) == final
    assert store.redis.zcard(schema.QUEUED) == store.redis.zcard(schema.RUNNING) == 0


def test_a_job_that_was_to_be_cancelled_when_its_worker_died_is(client: Client, store: JobStore, look: Look) -> None:
    """It waited for the next worker to claim it, for 24 h if none came."""
    begun(store)
    assert cancel(store) == "running"
    let_lease_run_out(store)
    look(client, store)
    check_ended(client, store, "cancelled", "CANCELLED")


def test_a_job_whose_worker_is_dead_is_cancelled_at_once(client: Client, store: JobStore) -> None:
    writer = begun(store)
    let_lease_run_out(store)
    assert client.cancel(J) == "cancelled"
    check_ended(client, store, "cancelled", "CANCELLED")
    assert not writer.tokens(1), "it was not dead after all"
    check_ended(client, store, "cancelled", "CANCELLED")


def test_a_job_that_was_to_be_cancelled_and_is_given_back_goes_to_nobody(client: Client, store: JobStore) -> None:
    writer = begun(store)
    cancel(store)
    assert store.release({J: writer.claim.lease}) == []
    check_ended(client, store, "cancelled", "CANCELLED")


@pytest.mark.parametrize("place", ["queued", "given back", "owner dead"])
def test_a_deadline_ends_a_job_wherever_it_is(client: Client, store: JobStore, look: Look, place: str) -> None:
    if place == "queued":
        submit(store, J, parse({"prompt": "x", "deadline_s": DEADLINE_S}))
    else:
        writer = begun(store)
        set_deadline(store, DEADLINE_S)
        if place == "given back":
            store.release({J: writer.claim.lease})
    time.sleep(DEADLINE_S + 0.01)
    if place == "owner dead":
        let_lease_run_out(store)
    look(client, store)
    check_ended(client, store, "expired", "EXPIRED", text="" if place == "queued" else " 1 2")


def test_a_deadline_that_is_over_when_a_job_is_given_back_ends_it(client: Client, store: JobStore) -> None:
    writer = begun(store)
    set_deadline(store, -1)
    assert store.release({J: writer.claim.lease}) == []
    check_ended(client, store, "expired", "EXPIRED")


@pytest.mark.parametrize(
    ("served", "final", "code"), [(True, "expired", "EXPIRED"), (False, "failed", "MODEL_NOT_SERVED")]
)
def test_the_queue_limit_counts_from_when_a_job_came_back(
    client: Client, store: JobStore, look: Look, served: bool, final: str, code: str
) -> None:
    writer = begun(store)
    store.redis.hset(schema.job_key(J), "queued_ms", 1)
    client.status(J)
    assert state(store) == "running", "what runs is in no queue"
    store.release({J: writer.claim.lease})
    client.status(J)
    assert state(store) == "queued"
    store.redis.hset(schema.job_key(J), "queued_ms", 1)
    make_due_again(store)
    if served:
        store.renew({})
    look(client, store)
    check_ended(client, store, final, code)


def test_what_an_owner_has_is_left_to_it(client: Client, store: JobStore, connection: redis.Redis) -> None:
    writer = begun(store)
    set_deadline(store, -1)
    cancel(store)
    ears = Ears(connection, schema.events_channel(J))
    client.status(J)
    store.reap()
    assert state(store) == "running"
    assert ears.heard() == []
    ears.close()
    assert writer.fail("CANCELLED")
    check_ended(client, store, "cancelled", "CANCELLED")
