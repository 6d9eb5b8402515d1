"""Keys that somebody deleted or that cannot be used: no other message waits (F15), none is lost (F09)."""

from __future__ import annotations

import time

import pytest
import redis

from orcd.store import schema
from orcd.store.broker import say_wrong_type
from tasks.celery_ext import receiver as receivers
from tasks.celery_ext.receiver import Receiver
from tests.tasks.celery_ext.taken_messages import MakeReceiver, send, take, waiting


def test_a_list_whose_key_has_another_type_does_not_keep_others_waiting(
    connection: redis.Redis, receiver: Receiver
) -> None:
    connection.set("a", "no list")
    send(connection, "b", "1")
    assert [text for _, _, text in take(connection, receiver)] == ["1"]


@pytest.mark.parametrize("key", ["a", "a:tenants", "a:tenant:some", schema.RECEIVERS, schema.AGES, schema.DEAD])
def test_a_key_of_another_type_is_named_once_in_the_log(
    connection: redis.Redis, receiver: Receiver, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    """F15: nobody was told why messages waited."""
    say_wrong_type.cache_clear()
    for _ in range(3):
        connection.delete("a", "a:tenants")
        send(connection, "a", "tenant")
        connection.zadd("a:tenants", {"some": 1})
        send(connection, "b", "no JSON")
        connection.delete(key)
        connection.set(key, "of another type")
        for tag, _, _ in take(connection, receiver):
            receiver.dead_letter(tag, "it is no JSON")
        receiver._next_maintenance = 0.0
        receiver.maintain()
    (said,) = [record.msg for record in caplog.records]
    assert f"The key {key} is of a wrong type" in said


def test_messages_are_taken_and_put_back_after_the_receivers_had_another_type(
    connection: redis.Redis, make_receiver: MakeReceiver
) -> None:
    """F15: nothing was taken any more, by a worker that said that it was ready."""
    holding, receiver = make_receiver("holding", lease_ms=1000), make_receiver(lease_ms=1000)
    send(connection, "a", "1", "2")
    take(connection, holding, 1)
    connection.set(schema.RECEIVERS, "no zset")
    assert take(connection, receiver) == [], "not before leases can be noted"
    assert waiting(connection, "a") == ["2"]
    receiver.maintain()
    assert [text for _, _, text in take(connection, receiver)] == ["2"]
    time.sleep(1.05)
    receiver._next_maintenance = 0.0
    receiver.maintain()
    assert waiting(connection, "a") == ["1"]


def test_a_receiver_closes_when_the_receivers_have_another_type(connection: redis.Redis, receiver: Receiver) -> None:
    """F15."""
    send(connection, "a", "1")
    take(connection, receiver)
    connection.set(schema.RECEIVERS, "no zset")
    receiver.close()
    assert waiting(connection, "a") == ["1"]


def test_a_receiver_that_redis_has_forgotten_is_known_again_when_it_renews(
    connection: redis.Redis, receiver: Receiver
) -> None:
    send(connection, "a", "1")
    take(connection, receiver)
    connection.delete(schema.RECEIVERS)
    receiver.maintain()
    assert connection.zrange(schema.RECEIVERS, 0, -1) == [b"r1"]


@pytest.mark.parametrize("key_prefix", ["", "ours:"])
def test_what_a_receiver_had_that_redis_has_forgotten_and_that_died_is_put_back(
    connection: redis.Redis, make_receiver: MakeReceiver, key_prefix: str
) -> None:
    """F09: its notes stayed for ever, as nobody knew of it."""
    dead, living = (make_receiver(name, 1000, key_prefix=key_prefix) for name in ("dead{}", "living"))
    other = make_receiver("other", key_prefix="theirs:")
    send(connection, "a", "1", "2")
    take(connection, dead, 1)
    take(connection, other, 1)
    connection.delete(key_prefix + schema.RECEIVERS, "theirs:" + schema.RECEIVERS)
    living.maintain()
    assert waiting(connection, "a") == [], "it may live and renew"
    time.sleep(1.05)
    living._next_maintenance = 0.0
    living.maintain()
    assert waiting(connection, "a") == ["1"]
    assert not connection.exists("theirs:" + schema.RECEIVERS), "others' notes are no business of ours"


def test_the_notes_of_forgotten_receivers_are_found_among_many_keys_a_few_at_a_time(
    connection: redis.Redis, make_receiver: MakeReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F09: however many keys there are, Redis is not kept by one call."""
    monkeypatch.setattr(receivers, "MAX_SEARCHED", 50)
    connection.mset({f"key-{number}": "x" for number in range(1000)})
    connection.set(schema.unacked_key("no-notes"), "no hash")
    for number in range(20):
        connection.hset(schema.unacked_key(f"dead-{number}"), f"0 list-{number}", "text")
    living = make_receiver(lease_ms=60_000)
    num_known = []
    for _ in range(40):
        living._next_maintenance = 0.0
        living.maintain()
        num_known.append(connection.zcard(schema.RECEIVERS))
    assert num_known[0] < num_known[-1] == 20
    connection.delete(schema.RECEIVERS)
    living._next_maintenance = 0.0
    living.maintain()
    assert not connection.exists(schema.RECEIVERS), "the next search begins when a lease is over"


def test_notes_that_say_not_where_a_message_came_from_keep_no_others(
    connection: redis.Redis, make_receiver: MakeReceiver
) -> None:
    """F15: whatever somebody wrote there."""
    dead, living = make_receiver("dead", lease_ms=1), make_receiver("living")
    send(connection, "a", "1")
    take(connection, dead)
    connection.hset(schema.unacked_key("dead"), mapping={"x": "y", "7": "z", "": ""})
    time.sleep(0.01)
    living.maintain()
    assert waiting(connection, "a") == ["1"]


def test_what_cannot_be_put_back_waits_until_it_can(connection: redis.Redis, make_receiver: MakeReceiver) -> None:
    dead, living = make_receiver("dead", lease_ms=1), make_receiver("living")
    send(connection, "a", "1")
    send(connection, "b", "2")
    take(connection, dead)
    connection.set("a", "no list")
    time.sleep(0.01)
    living.maintain()
    assert waiting(connection, "b") == ["2"]
    connection.delete("a")
    living._next_maintenance = 0.0
    living.maintain()
    assert waiting(connection, "a") == ["1"]
