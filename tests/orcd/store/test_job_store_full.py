"""A bounded queue, and jobs that are refused where no worker serves their model."""

from __future__ import annotations

import pytest

from orcd.client import Client
from orcd.errors import Conflict, ModelNotServed, QueueFull
from orcd.events import Error, decode_event
from orcd.request import Request
from orcd.store import schema
from orcd.store.job_store import LIMIT_TTL_S, Arrival
from tests.orcd.job_record import REQUEST, Ears, J, logged, recorded, state, submit
from tests.orcd.job_writer import MakeStore, claimed

OTHER = Request(prompt="Something else.", seed=7)


def test_a_full_queue_refuses_new_jobs_until_one_is_taken(client: Client, make_store: MakeStore) -> None:
    store = make_store()
    store.limit_queue(2, replaces=True)
    first = client.submit(prompt="x")
    client.submit(prompt="x", model="other")  # it is one limit for all queues
    with pytest.raises(QueueFull, match="too many jobs wait; submit again in 5 s") as refused:
        client.submit(prompt="x", job_id="refused")
    assert (refused.value.retriable, refused.value.retry_after_s) == (True, 5.0)
    assert not list(store.redis.scan_iter("*refused*"))
    claimed(store, first)
    assert client.submit(prompt="x", job_id="refused") == "refused"


def test_a_full_queue_takes_a_job_that_it_has_already_and_one_that_comes_back(client: Client, make_store: MakeStore):
    store = make_store()
    store.limit_queue(1, replaces=True)
    writer = claimed(store, client.submit(prompt="x", job_id="running"))
    client.submit(prompt="x", job_id="waiting")
    assert client.submit(prompt="x", job_id="waiting") == "waiting"
    with pytest.raises(Conflict):
        client.submit(prompt="y", job_id="waiting")
    assert len(store.release({"running": writer.claim.lease})) == 1
    assert state(store, "running") == "queued"


def test_of_many_jobs_a_full_queue_takes_what_it_has_room_for_and_says_which(client: Client, make_store: MakeStore):
    make_store().limit_queue(3, replaces=True)
    job_ids = [f"job-{number}" for number in range(5)]
    requests = [{"prompt": "x"}] * 5
    with pytest.raises(QueueFull, match="3 of the jobs were stored") as refused:
        client.submit_many(requests, job_ids)
    assert refused.value.stored == tuple(job_ids[:3])
    with pytest.raises(QueueFull) as refused:
        client.submit_many(requests)
    assert refused.value.stored == ()


def test_a_refused_message_gets_an_error_event_and_no_record(make_store: MakeStore, ears: Ears) -> None:
    store = make_store()
    store.limit_queue(1, replaces=True)
    submit(store, "waiting")
    arrivals = [Arrival(J, OTHER, recorded("task", J)), Arrival("waiting", None, recorded("task", "waiting"))]
    refusal, error = store.arrive(arrivals)
    assert isinstance(refusal, QueueFull)
    assert error is None
    ((position, event),) = logged(store)
    assert position == "0-1"
    assert isinstance(event, Error)
    assert (event.code, event.retriable) == ("QUEUE_FULL", True)
    assert [decode_event(data) for data in ears.heard()] == [event]
    assert [key.decode() for key in store.redis.scan_iter(f"*{J}*")] == [schema.log_key(J)]
    assert 0 < store.redis.ttl(schema.log_key(J)) <= 600


def test_a_refused_message_that_comes_again_later_is_taken(make_store: MakeStore) -> None:
    store = make_store()
    store.limit_queue(1, replaces=True)
    submit(store, "waiting")
    for _ in range(2):
        with pytest.raises(QueueFull):
            submit(store)
    claimed(store, "waiting")
    submit(store)
    assert (state(store), logged(store)) == ("queued", [])


def test_the_limit_of_the_worker_that_was_started_last_holds(make_store: MakeStore) -> None:
    store = make_store()
    store.limit_queue(5, replaces=True)
    store.limit_queue(7, replaces=True)
    store.limit_queue(5, replaces=False)
    assert store.redis.get(schema.MAX_QUEUED) == b"7"
    assert LIMIT_TTL_S - 60 < store.redis.ttl(schema.MAX_QUEUED) <= LIMIT_TTL_S
    store.limit_queue(0, replaces=False)
    assert store.redis.exists(schema.MAX_QUEUED)
    store.limit_queue(0, replaces=True)
    assert not store.redis.exists(schema.MAX_QUEUED)
    store.limit_queue(5, replaces=False)
    assert store.redis.get(schema.MAX_QUEUED) == b"5"  # Redis had forgotten it


@pytest.mark.parametrize("value", ["many", ["a", "list"]])
def test_a_limit_that_is_none_refuses_nothing(client: Client, make_store: MakeStore, value: object) -> None:
    store = make_store()
    if isinstance(value, str):
        store.redis.set(schema.MAX_QUEUED, value)
    else:
        store.redis.rpush(schema.MAX_QUEUED, *value)
    assert client.submit(prompt="x")


def test_a_job_that_must_not_wait_for_a_worker_is_refused_where_none_serves_its_model(
    client: Client, make_store: MakeStore
) -> None:
    for model in (None, "demo", "other"):
        with pytest.raises(ModelNotServed, match="no worker serves the model now"):
            client.submit(prompt="x", model=model, fail_fast=True)
    make_store().renew({}, is_ready=False)
    assert client.submit(prompt="x", model="demo", fail_fast=True)
    assert client.submit(prompt="x", fail_fast=True)
    with pytest.raises(ModelNotServed):
        client.submit_many([{"prompt": "x"}, {"prompt": "x", "model": "other"}], ["a", "b"], fail_fast=True)
    assert client.status("a").state == "queued"
    assert client.submit(prompt=REQUEST.prompt, model="other")


@pytest.mark.parametrize(
    ("model", "renewed_by", "served", "reason"),
    [
        (None, [], False, "no worker is running"),
        ("qwen2.5:7b é", [True], False, "no worker serves qwen2.5:7b é; there are workers for demo"),
        ("qwen2.5:7b é", [], False, "no worker serves qwen2.5:7b é"),
        ("demo", [False], True, "loading the model"),
        ("demo", [False, True], True, "waiting for a free slot"),
        (None, [True, False], True, "waiting for a free slot"),
    ],
)
def test_a_queued_job_says_why_it_waits(
    client: Client,
    make_store: MakeStore,
    ears: Ears,
    model: str | None,
    renewed_by: list[bool],
    served: bool,
    reason: str,
) -> None:
    for is_ready in renewed_by:
        make_store().renew({}, is_ready=is_ready)
    client.submit(prompt="x", model=model, job_id=J)
    events = [decode_event(data) for data in ears.heard()] + [next(client.events(J))]
    assert [(event.served, event.reason) for event in events] == [(served, reason)] * 2
