"""How long a job lives: in the queue, without a worker, for a model that nobody serves, and after its end."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from orcd.client import Client
from orcd.events import Error, Loading, Queued, decode_event
from orcd.request import Request, parse
from orcd.store import schema
from orcd.store.job_store import JobStore
from tests.orcd.job_record import (
    Ears,
    J,
    age,
    field,
    is_due,
    let_lease_run_out,
    make_due_again,
    set_deadline,
    state,
    submit,
)
from tests.orcd.job_writer import MakeStore, claimed

Looker = Callable[[Client, JobStore], object]


def by_client(client: Client, store: JobStore) -> object:
    return client.status(J)


def by_reaper(client: Client, store: JobStore) -> object:
    make_due_again(store)
    return store.reap()


LOOKERS = pytest.mark.parametrize("look", [by_client, by_reaper])


def wait_long(store: JobStore) -> None:
    """As if the queue's limit were over."""
    age(store, 24 * 3600 + 1)


def end_of(store: JobStore) -> str:
    (event,) = store.events(J)
    assert isinstance(event, Error)
    assert decode_event(store.redis.hget(schema.job_key(J), "end")) == event
    return event.code


# -- overdue jobs ----------------------------------------------------------------------------------------------------


@LOOKERS
def test_whoever_looks_ends_a_queued_job_whose_deadline_passed(client: Client, make_store: MakeStore, look: Looker):
    """F11: with no worker alive `deadline_s` never fired."""
    store = make_store()
    submit(store, request=parse({"prompt": "x", "deadline_s": 0.02}))
    time.sleep(0.03)
    look(client, store)
    assert (state(store), end_of(store)) == ("expired", "EXPIRED")
    assert store.redis.zcard(schema.QUEUED) == 0


@LOOKERS
def test_whoever_looks_ends_a_job_that_waited_too_long(client: Client, make_store: MakeStore, look: Looker):
    """F11: it vanished without a terminal event."""
    store = make_store()
    store.renew({})
    submit(store)
    wait_long(store)
    look(client, store)
    assert (state(store), end_of(store)) == ("expired", "EXPIRED")


@LOOKERS
def test_a_job_whose_model_nobody_serves_ends_saying_so(client: Client, make_store: MakeStore, look: Looker):
    """F11: an unknown model waited for ever in silence."""
    store = make_store()
    store.renew({})
    submit(store, request=Request(prompt="x", model="other"))
    wait_long(store)
    look(client, store)
    assert (state(store), end_of(store)) == ("failed", "MODEL_NOT_SERVED")
    assert client.result(J).error.code == "MODEL_NOT_SERVED"


def test_the_limit_counts_anew_when_a_job_comes_back_into_the_queue(client: Client, make_store: MakeStore):
    store = make_store()
    submit(store)
    age(store, 3600)
    writer = claimed(store, J)
    store.release({J: writer.claim.lease})
    assert field(store, "queued_ms") > field(store, "created_ms") + 3_000_000
    assert client.status(J).state == "queued"


@LOOKERS
def test_a_running_job_without_a_lease_whose_deadline_passed_is_ended(
    client: Client, make_store: MakeStore, look: Looker
):
    store = make_store()
    submit(store, request=parse({"prompt": "x", "deadline_s": 60}))
    claimed(store, J)
    set_deadline(store, -1)
    look(client, store)
    assert state(store) == "running", "its owner ends it"
    let_lease_run_out(store)
    look(client, store)
    assert (state(store), end_of(store)) == ("expired", "EXPIRED")
    assert store.redis.zcard(schema.RUNNING) == 0


def test_a_stream_of_a_job_that_no_worker_takes_ends_with_its_deadline(
    client: Client, make_store: MakeStore, short_poll: None
):
    """F11: the whole of it, with no worker anywhere."""
    events = client.events(client.submit(prompt="x", job_id=J, deadline_s=60), timeout=60)
    assert next(events) == Queued(1, served=False, reason="no worker is running")
    set_deadline(make_store(), 0.2)
    *_, last = events
    assert isinstance(last, Error)
    assert last.code == "EXPIRED"


@pytest.mark.parametrize(("zset", "name"), [(schema.QUEUED, "queued"), (schema.RUNNING, "running")])
def test_a_job_that_fell_off_its_list_is_put_there_again_by_whoever_looks(
    client: Client, make_store: MakeStore, zset: str, name: str
):
    """F11: no reaper would ever find it."""
    store = make_store()
    submit(store)
    if name == "running":
        claimed(store, J)
    store.redis.delete(zset)
    begun_ms = 1000 * time.time()
    assert client.status(J).state == name
    assert is_due(store.redis.zscore(zset, J), begun_ms, 10_000)
    assert store.redis.ttl(zset) > 0


def test_keys_live_as_long_as_the_job_and_a_while_after_its_end(make_store: MakeStore):
    """F11: with a time to live of 5 s a job that waited 6 s was gone."""
    store = make_store(ttl_s=60)
    submit(store)
    keys = [schema.job_key(J), schema.log_key(J)]
    assert store.redis.ttl(keys[0]) > 24 * 3600
    writer = claimed(store, J)
    writer.tokens(1)
    for key in keys:
        assert store.redis.ttl(key) > 24 * 3600
        store.redis.expire(key, 100)
    store.renew({J: writer.claim.lease})
    assert min(map(store.redis.ttl, keys)) > 24 * 3600
    store.release({J: writer.claim.lease})
    for key in keys:
        store.redis.expire(key, 100)
    writer = claimed(store, J)
    assert min(map(store.redis.ttl, keys)) > 24 * 3600
    writer.end()
    assert max(map(store.redis.ttl, keys)) <= 60


# -- who serves what -------------------------------------------------------------------------------------------------


def test_the_queued_event_says_whether_anybody_serves_the_model(make_store: MakeStore, ears: Ears):
    store = make_store()
    submit(store)
    store.renew({})
    for job_id, model in (("a", None), ("b", "demo"), ("c", "other")):
        more = Ears(store.redis, schema.events_channel(job_id))
        submit(store, job_id, Request(prompt="x", model=model))
        (event,) = [decode_event(event) for event in more.heard()]
        more.close()
        assert isinstance(event, Queued)
        assert event.served == (model != "other")
    assert [decode_event(event) for event in ears.heard()] == [Queued(1, served=False, reason="no worker is running")]


def test_a_worker_that_was_not_seen_for_a_minute_serves_nothing(client: Client, make_store: MakeStore):
    store = make_store()
    store.renew({})
    submit(store)
    assert client.status(J).served
    seen = store.redis.zrange(schema.SERVED, 0, -1, withscores=True)
    assert [queue for queue, _ in seen] == [b"orcd", b"orcd.demo"]
    store.redis.zadd(schema.SERVED, {queue: score - 61_000 for queue, score in seen})
    assert not client.status(J).served
    assert next(client.events(J)) == Queued(1, served=False, reason="no worker is running")


def test_progress_of_loading_is_told_to_jobs_of_the_worker_s_queues_only(make_store: MakeStore):
    store = make_store()
    heard = {}
    for job_id, model in (("any", None), ("ours", "demo"), ("other", "other")):
        submit(store, job_id, Request(prompt="x", model=model))
        heard[job_id] = Ears(store.redis, schema.events_channel(job_id))
    store.announce_loading(50)
    told = {job_id: [decode_event(event) for event in ears.heard()] for job_id, ears in heard.items()}
    for ears in heard.values():
        ears.close()
    assert told == {"any": [Loading(50)], "ours": [Loading(50)], "other": []}
