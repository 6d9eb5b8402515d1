"""Two versions side by side: literal records of version 1 are read, those of a version 5 are refused in words."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import redis

from orcd.client import Client
from orcd.errors import Cancelled, InvalidRequest
from orcd.events import End, Queued, Started, Token
from orcd.request import Request
from orcd.store import schema
from orcd.store.claim import Claim
from orcd.store.enqueue import Message
from orcd.store.job_store import Append, Arrival, JobStore
from tests.orcd.job_record import J, let_lease_run_out, make_due_again, recorded, state
from tests.orcd.job_writer import MakeStore, claimed

V1_LOG = {
    "0-1": b'{"type":"started","job_id":"job-1","model":"demo","started_at":1700000000000,"attempt":1}',
    "2-0": b'{"type":"token","t":" 1 2","i":1,"ids":[101,102]}',
}


def write_v1(connection: redis.Redis, *, queue: str = "celery", **fields: object) -> None:
    """A record as a client of version 1 writes it; the message went to a list that nobody reads any more."""
    now = time.time_ns() // 1_000_000
    record = {"request": b'{"prompt":"Say something.","seed":7}', "state": "queued", "queue": queue, "priority": 5}
    record |= {"created_ms": now, "deadline_ms": 0, "epoch": now, "attempt": 0, "published": 0} | fields
    connection.hset(schema.job_key(J), mapping=record)
    connection.expire(schema.job_key(J), 600)
    connection.zadd(schema.QUEUED, {J: now + 15_000})
    connection.expire(schema.QUEUED, 600)


def write_v1_log(connection: redis.Redis) -> None:
    for entry, event in V1_LOG.items():
        connection.xadd(schema.log_key(J), {"e": event}, id=entry)
    connection.expire(schema.log_key(J), 600)


@pytest.fixture
def store(make_store: MakeStore) -> JobStore:
    store = make_store()
    store.renew({})
    return store


# -- version 1 -------------------------------------------------------------------------------------------------------


def test_a_job_of_an_old_client_runs_on_a_new_worker(store: JobStore, client: Client):
    write_v1(store.redis)
    assert next(client.events(J)) == Queued(1, reason="waiting for a free slot")
    writer = claimed(store, J)
    assert writer.claim.request == Request(prompt="Say something.", seed=7)
    assert (writer.claim.fingerprint, writer.claim.log) == ("", ())
    for _ in range(2):
        assert writer.tokens(2)
    assert store.renew({J: writer.claim.lease}) == {J: "renewed"}
    assert writer.end()
    assert client.result(J).text == " 1 2 3 4"
    assert store.redis.ttl(schema.job_key(J)) > 80_000


@pytest.mark.parametrize(
    ("queue", "now", "model"),
    [
        ("celery", "orcd", "demo"),
        ("orcd.demo", "orcd.demo", "demo"),
        ("orcd.qwen2.5:7b", "orcd.qwen2.5%3A7b", "qwen2.5:7b"),
        ("orcd.é", "orcd.%C3%A9", "é"),
    ],
)
def test_a_job_of_an_old_client_is_announced_in_today_s_queue(
    connection: redis.Redis, queue: str, now: str, model: str
):
    store = JobStore(connection, owner="new", model=model, lease_ms=60_000, ttl_s=600)
    write_v1(store.redis, queue=queue)
    make_due_again(store)
    assert store.reap() == [Message(J, now, 4)]
    writer = claimed(store, J)
    assert store.release({J: writer.claim.lease}) == [Message(J, now, 5)]


def test_a_new_worker_goes_on_where_an_old_one_died(store: JobStore, client: Client):
    write_v1(store.redis, state="running", owner="old", model="demo", attempt=1, started_ms=1_700_000_000_000)
    write_v1_log(store.redis)
    let_lease_run_out(store)
    store.redis.zrem(schema.QUEUED, J)
    assert [message.job_id for message in store.reap()] == [J]
    writer = claimed(store, J)
    assert writer.num_tokens == 2
    writer.start()
    writer.tokens(1)
    writer.end()
    result = client.result(J)
    assert (result.text, result.fingerprints) == (" 1 2 3", [])


def test_an_old_worker_s_ended_job_is_read_though_its_record_has_no_end(client: Client, store: JobStore):
    write_v1(store.redis, state="failed", attempt=1, finished_ms=1)
    write_v1_log(store.redis)
    error = b'{"type":"error","code":"VRAM_OOM","message":"too long","retriable":true}'
    store.redis.xadd(schema.log_key(J), {"e": error}, id="2-1")
    assert client.result(J).error.code == "VRAM_OOM"
    assert client.status(J).state == "failed"
    assert store.claim([J]) == ["finished"]


def test_submitting_an_old_client_s_job_again_is_harmless(client: Client, store: JobStore):
    write_v1(store.redis)
    assert client.submit(prompt="Say something.", job_id=J) == J
    assert store.arrive([Arrival(J, Request(prompt="Say something."), recorded("task", J))]) == [None]


def play_old_worker(connection: redis.Redis) -> None:
    """What version 1's claim and append scripts write."""
    job, now = schema.job_key(J), time.time_ns() // 1_000_000
    connection.hset(job, mapping={"state": "running", "owner": "old", "model": "demo"})
    for name in ("epoch", "attempt"):
        connection.hincrby(job, name, 1)
    connection.hsetnx(job, "started_ms", now)
    connection.zrem(schema.QUEUED, J)
    connection.zadd(schema.RUNNING, {J: now + 10_000})
    end = b'{"type":"end","finish_reason":"length","tokens_in":1,"tokens_out":2,'
    end += b'"queue_ms":1,"ttft_ms":1,"decode_ms":1,"text_sha256":""}'
    for entry, event in {**V1_LOG, "2-1": end}.items():
        connection.xadd(schema.log_key(J), {"e": event}, id=entry)
        connection.publish(schema.events_channel(J), event)
    connection.hset(job, mapping={"state": "succeeded", "finished_ms": now})
    connection.zrem(schema.RUNNING, J)


def test_a_new_client_s_job_runs_on_an_old_worker(store: JobStore, client: Client):
    client.submit(prompt="Say something.", job_id=J)
    events = client.events(J)
    assert next(events) == Queued(1, reason="waiting for a free slot")
    play_old_worker(store.redis)
    assert [event.t for event in events if isinstance(event, Token)] == [" 1 2"]
    assert client.result(J).text == " 1 2"
    assert client.status(J).state == "succeeded"
    assert store.claim([J]) == ["finished"]
    assert [type(event) for event in store.events(J)] == [Started, Token, End]


def test_an_old_worker_s_claim_fences_the_new_one_that_had_the_job(store: JobStore):
    """It raises the epoch, and knows of no token."""
    write_v1(store.redis)
    writer = claimed(store, J)
    store.redis.hincrby(schema.job_key(J), "epoch", 1)
    store.redis.hset(schema.job_key(J), mapping={"owner": "old", "state": "running"})
    assert not writer.tokens(1)
    assert store.renew({J: writer.claim.lease}) == {J: "lost"}


# -- version 5 -------------------------------------------------------------------------------------------------------


def write_v5(store: JobStore, *, running: bool) -> None:
    """A record of a version that does not exist yet."""
    write_v1(store.redis, schema=5, request=b"\x00packed", state="running" if running else "queued")
    if running:
        store.redis.zrem(schema.QUEUED, J)
        let_lease_run_out(store)


@pytest.mark.parametrize("running", [False, True])
def test_a_job_of_a_newer_client_is_left_alone_by_an_old_worker(store: JobStore, running: bool):
    write_v5(store, running=running)
    before = store.redis.hgetall(schema.job_key(J))
    assert store.claim([J]) == ["unreadable"]
    make_due_again(store) if not running else None
    assert store.reap() == []
    assert store.reap() == [], "and it does not stand before others"
    assert store.arrive([Arrival(J, None, recorded("task", J))]) == [None]
    assert store.cancel(J, Cancelled("revoked")) == "newer"
    assert store.redis.hgetall(schema.job_key(J)) == before
    assert not store.redis.exists(schema.messages_key(J))


def test_the_reaper_looks_past_many_jobs_of_a_newer_version(store: JobStore):
    write_v5(store, running=True)
    store.arrive([Arrival("ours", Request(prompt="x"), None)])
    claimed(store, "ours")
    let_lease_run_out(store, "ours")
    assert [message.job_id for _ in range(2) for message in store.reap(1)] == ["ours"]


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.status(J),
        lambda client: client.result(J),
        lambda client: client.cancel(J),
        lambda client: list(client.events(J)),
    ],
)
def test_an_old_client_is_told_to_upgrade(store: JobStore, client: Client, ask: Callable[[Client], object]):
    write_v5(store, running=False)
    with pytest.raises(InvalidRequest, match="job job-1: a newer version of orcd wrote it; upgrade this one"):
        ask(client)


def test_an_event_s_new_fields_and_a_record_s_are_ignored(store: JobStore, client: Client):
    write_v1(store.redis, schema=2, queue="orcd", ttl_s=60, queue_limit_s=60, from_the_future=1)
    writer = claimed(store, J)
    assert isinstance(writer.claim, Claim)
    store.redis.xadd(schema.log_key(J), {"e": b'{"type":"token","t":"a","i":1,"ids":[5],"new":1}', "n": "x"}, id="1-0")
    assert store.events(J) == [Token("a", 1, [5])]
    assert store.append([Append(J, writer.claim.lease, writer.position)])[0].status == "conflict"
    assert state(store) == "running"
