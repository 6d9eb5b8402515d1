"""Messages of jobs that wait may be lost: the reaper finds out whose are, and sends no other one again."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis

from orcd.request import Request
from orcd.settings import ClientSettings
from orcd.store import schema
from orcd.store.broker import EMPTIED_TTL_S, say_wrong_type
from orcd.store.enqueue import Message, Publisher, tenant_digest
from orcd.store.job_store import REPUBLISH_ANYWAY_MS
from tests.orcd.job_record import J, age, make_due_again, submit
from tests.orcd.job_writer import MakeStore, claimed


@pytest.fixture
def publisher(redis_url: str) -> Iterator[Publisher]:
    publisher = Publisher(ClientSettings(redis_url=redis_url))
    yield publisher
    publisher.close()


def test_the_reaper_does_not_double_a_backlog(publisher: Publisher, connection: redis.Redis, make_store: MakeStore):
    """Each waiting job got another message after 15 s, 45 s, 105 s ... however many waited before it."""
    store = make_store()
    for number in range(5):
        submit(store, f"job-{number}")
        if number:  # the first one's was lost
            publisher.publish(Message(f"job-{number}", "orcd", 5))
        make_due_again(store, f"job-{number}")
    assert store.reap() == []
    assert connection.zcount(schema.QUEUED, "-inf", time.time() * 1000) == 0
    connection.delete("orcd:5")
    for number in range(5):
        make_due_again(store, f"job-{number}")
    assert store.reap() == [Message(f"job-{number}", "orcd", 4) for number in range(5)]


def take_all(connection: redis.Redis, key: str) -> None:
    """As workers do."""
    while connection.rpop(key):
        pass


def test_a_message_that_was_not_sent_is_missed_though_its_list_is_never_seen_empty(
    publisher: Publisher, connection: redis.Redis, make_store: MakeStore
):
    """F11: Redis had refused it, and each time that the reaper looked others were in the queue: 70 s and more."""
    store = make_store()
    submit(store)
    age(store, 20)
    take_all(connection, "orcd:5")
    publisher.publish(Message("job-1", "orcd", 5))
    publisher.publish(Message("job-2", "orcd", 5))
    make_due_again(store)
    assert store.reap() == [Message(J, "orcd", 4)]
    make_due_again(store)
    assert store.reap() == [Message(J, "orcd", 3)], "the list of its new priority is empty"


def test_a_message_that_others_came_before_is_not_missed(
    publisher: Publisher, connection: redis.Redis, make_store: MakeStore
):
    """Its list was empty when its job was stored, and never since."""
    store = make_store()
    submit(store)
    publisher.publish(Message(J, "orcd", 5))
    publisher.publish(Message("job-1", "orcd", 5))
    make_due_again(store)
    assert store.reap() == []


def test_a_message_that_was_sent_again_is_not_missed_for_what_happened_before(
    publisher: Publisher, connection: redis.Redis, make_store: MakeStore
):
    store = make_store()
    submit(store)
    age(store, 60)
    make_due_again(store)
    (again,) = store.reap()
    connection.lpush("orcd:4", "other")
    publisher.publish(again)
    now = int(time.time() * 1000)
    store.redis.zadd(schema.QUEUED, {J: now})  # the last look was 15 s before
    connection.hset(schema.EMPTIED, "orcd:4", int(now) - 20_000)
    assert store.reap() == []
    store.redis.zadd(schema.QUEUED, {J: now})
    connection.hset(schema.EMPTIED, "orcd:4", int(now) - 10_000)
    assert store.reap() == [Message(J, "orcd", 3)]


def test_notes_of_lists_that_were_empty_may_be_of_another_type(
    publisher: Publisher, connection: redis.Redis, make_store: MakeStore, caplog: pytest.LogCaptureFixture
):
    """F15."""
    say_wrong_type.cache_clear()
    store = make_store()
    submit(store)
    connection.set(schema.EMPTIED, "no hash")
    connection.lpush("orcd:5", "other")
    make_due_again(store)
    assert store.reap() == []
    connection.delete("orcd:5")
    publisher.publish(Message("job-1", "orcd", 5))
    assert connection.hkeys(schema.EMPTIED) == [b"orcd:5"]
    assert 0 < connection.ttl(schema.EMPTIED) <= EMPTIED_TTL_S
    assert [schema.EMPTIED in message for message in caplog.messages] == [True]


def test_a_note_of_a_clock_that_was_ahead_makes_no_message_look_lost(
    publisher: Publisher, connection: redis.Redis, make_store: MakeStore
):
    store = make_store()
    for number in range(3):
        submit(store, f"job-{number}")
        publisher.publish(Message(f"job-{number}", "orcd", 5))
        make_due_again(store, f"job-{number}")
    connection.hset(schema.EMPTIED, "orcd:5", int(time.time() * 1000) + 3_600_000)
    assert store.reap() == []


def test_a_message_that_is_sent_again_waits_for_its_tenant_s_turn_as_the_first_one(
    connection: redis.Redis, make_store: MakeStore
) -> None:
    store = make_store()
    submit(store, request=Request(prompt="x", tenant="someone"))
    make_due_again(store)
    (again,) = store.reap()
    assert again.tenant == tenant_digest("someone")
    assert connection.hget(schema.job_key(J), "tenant").decode() == again.tenant
    assert "someone" not in again.tenant
    released = store.release({J: claimed(store, J).claim.lease})
    assert [message.tenant for message in released] == [again.tenant]


def test_a_job_that_waits_very_long_in_a_full_queue_gets_a_more_urgent_message(
    publisher: Publisher, connection: redis.Redis, make_store: MakeStore
):
    store = make_store()
    for priority in (3, 4, 5):
        publisher.publish(Message("other", "orcd", priority))
    connection.delete(schema.EMPTIED)  # they were empty long ago
    submit(store)
    make_due_again(store)
    assert store.reap() == []
    age(store, REPUBLISH_ANYWAY_MS // 1000 + 1)
    make_due_again(store)
    assert store.reap() == [Message(J, "orcd", 4)]
    make_due_again(store)
    assert store.reap() == [], "the next time after twice as long"
    age(store, REPUBLISH_ANYWAY_MS // 1000)
    make_due_again(store)
    assert store.reap() == [Message(J, "orcd", 3)]
