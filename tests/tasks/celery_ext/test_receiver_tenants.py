"""Messages of several tenants: each tenant's are taken in turn, and none is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis
from celery import Celery

from orcd.settings import ClientSettings
from orcd.store.broker import say_wrong_type
from orcd.store.enqueue import Message, Publisher, tenant_digest
from tasks.celery_ext.message import read_envelope
from tasks.celery_ext.receiver import Receiver
from tests.tasks.celery_ext.taken_messages import MakeReceiver, send, take, waiting

Publish = Callable[..., None]
KEYS = ("orcd", "orcd:5")


@pytest.fixture
def publish(redis_url: str) -> Iterator[Publish]:
    """Sends messages of jobs with these ids."""
    publisher = Publisher(ClientSettings(redis_url=redis_url))

    def send_all(tenant: str | None, *job_ids: str, priority: int = 0) -> None:
        for job_id in job_ids:
            publisher.publish(Message(job_id, "orcd", priority, tenant=tenant_digest(tenant)))

    yield send_all
    publisher.close()


def jobs_of(taken: list[tuple[str, str, str]]) -> list[str]:
    """The ids of the jobs whose messages were taken."""
    return [read_envelope(text.encode(), tag, key)["properties"]["correlation_id"] for tag, key, text in taken]


def keys_of_tenants(connection: redis.Redis) -> set[bytes]:
    return set(connection.scan_iter("*:tenant*"))


def test_each_tenants_messages_are_taken_in_turn(connection: redis.Redis, receiver: Receiver, publish: Publish) -> None:
    publish("large", *(f"large-{number}" for number in range(20)))
    publish("small", "small-0", "small-1")
    publish("other", "other-0")
    assert connection.llen("orcd") == 23, "whoever counts what waits counts all of it"
    taken = jobs_of(take(connection, receiver, 3, KEYS)) + jobs_of(take(connection, receiver, 20, KEYS))
    assert taken[:6] == ["large-0", "small-0", "other-0", "large-1", "small-1", "large-2"]
    assert taken[6:] == [f"large-{number}" for number in range(3, 20)]
    assert not keys_of_tenants(connection), "nothing is kept of tenants that have nothing"


def test_a_tenant_that_comes_again_waits_for_those_that_are_there(
    connection: redis.Redis, receiver: Receiver, publish: Publish
) -> None:
    publish("a", "a-0")
    publish("b", "b-0", "b-1", "b-2")
    order = []
    for number in range(1, 4):  # it always has one, as a client that waits for each answer
        order += jobs_of(take(connection, receiver, 1, KEYS))
        publish("a", f"a-{number}")
    order += jobs_of(take(connection, receiver, 9, KEYS))
    assert order[:4] == ["a-0", "b-0", "a-1", "b-1"]


def test_the_more_urgent_priority_goes_first_whosever_it_is(
    connection: redis.Redis, receiver: Receiver, publish: Publish
) -> None:
    publish("a", "a-later", priority=5)
    publish("b", "b-0", "b-1")
    publish("b", "b-later", priority=5)
    assert jobs_of(take(connection, receiver, 9, KEYS)) == ["b-0", "b-1", "a-later", "b-later"]


def test_messages_without_a_tenant_keep_their_place(
    connection: redis.Redis, receiver: Receiver, publish: Publish
) -> None:
    publish("a", "a-0", "a-1")
    publish(None, "plain")
    publish("b", "b-0")
    assert jobs_of(take(connection, receiver, 9, KEYS)) == ["a-0", "b-0", "plain", "a-1"]


def test_what_a_receiver_does_not_acknowledge_is_next_again(
    connection: redis.Redis, receiver: Receiver, make_receiver: MakeReceiver, publish: Publish
) -> None:
    publish("a", "a-0", "a-1")
    publish("b", "b-0")
    take(connection, receiver, 2, KEYS)
    receiver.close()
    assert jobs_of(take(connection, make_receiver("next"), 9, KEYS)) == ["a-0", "b-0", "a-1"]


def test_messages_go_on_without_what_was_deleted_of_tenants(
    connection: redis.Redis, receiver: Receiver, publish: Publish
) -> None:
    publish("a", "a-0", "a-1")
    publish("b", "b-0")
    connection.delete(f"orcd:tenant:{tenant_digest('a')}")
    publish(None, "plain")
    assert jobs_of(take(connection, receiver, 9, KEYS)) == ["b-0", "plain"]
    assert connection.exists("orcd") == 0


@pytest.mark.parametrize("key", ["orcd:tenants", f"orcd:tenant:{tenant_digest('a')}"])
def test_a_key_of_a_wrong_type_loses_no_message_that_comes_later(
    connection: redis.Redis, receiver: Receiver, publish: Publish, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    say_wrong_type.cache_clear()
    publish("a", "a-0")
    connection.delete(key)
    connection.set(key, "no list")
    assert take(connection, receiver, 9, KEYS) == []
    publish("a", "a-1")
    assert jobs_of(take(connection, receiver, 9, KEYS)) == ["a-1"]
    assert [record.msg.partition("; ")[0] for record in caplog.records] == [f"The key {key} is of a wrong type"] * 2
    assert "nothing is taken" in caplog.records[0].msg
    assert "was deleted" in caplog.records[1].msg


def test_messages_of_a_deleted_list_do_not_come_in_place_of_later_ones(
    connection: redis.Redis, receiver: Receiver, publish: Publish
) -> None:
    publish("a", "a-purged")
    publish("b", "b-purged")
    connection.delete("orcd")
    publish("a", "a-0")
    assert jobs_of(take(connection, receiver, 9, KEYS)) == ["a-0"]
    assert not keys_of_tenants(connection)


def test_a_purge_leaves_nothing_of_tenants(
    connection: redis.Redis, receiver: Receiver, publish: Publish, app: Celery
) -> None:
    publish("a", "a-0", "a-1")
    publish("b", "b-later", priority=5)
    publish(None, "plain")
    with app.connection_for_write() as broker:
        assert broker.default_channel.queue_purge("orcd") == 4
    assert not keys_of_tenants(connection)
    publish(None, "next")
    assert jobs_of(take(connection, receiver, 9, KEYS)) == ["next"]


def test_a_message_stays_with_its_tenant_when_it_cannot_be_noted(
    connection: redis.Redis, receiver: Receiver, publish: Publish
) -> None:
    publish("a", "a-0")
    connection.config_set("maxmemory", 1)
    with pytest.raises(redis.ResponseError, match="used memory"):
        take(connection, receiver, 1, KEYS)
    connection.config_set("maxmemory", 0)
    assert jobs_of(take(connection, receiver, 1, KEYS)) == ["a-0"]


def test_a_ticket_that_nothing_stands_for_is_no_message(connection: redis.Redis, receiver: Receiver) -> None:
    send(connection, "orcd", "tenant", "real")
    assert [text for _, _, text in take(connection, receiver, 9, KEYS)] == ["real"]
    assert waiting(connection, "orcd") == []
