"""What senders and receivers of Celery messages have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kombu
import pytest
import redis
from kombu.exceptions import OperationalError

from orcd.settings import ClientSettings
from orcd.store import schema
from orcd.store.broker import PRIORITIES, Channel, Transport, say_wrong_type
from orcd.store.enqueue import Message, Publisher
from tests.orcd.job_record import Ears


@pytest.fixture
def publisher(redis_url: str) -> Iterator[Publisher]:
    publisher = Publisher(ClientSettings(redis_url=redis_url))
    yield publisher
    publisher.close()


@pytest.fixture
def woken(connection: redis.Redis) -> Iterator[Any]:
    """A function that returns the lists for which workers were woken since the last call."""
    ears = Ears(connection, schema.WAKE)
    yield ears.heard
    ears.close()


def test_the_connections_of_a_pool_have_our_transport_too(publisher: Publisher) -> None:
    with publisher.open().connections.acquire() as connection:
        assert isinstance(connection.transport, Transport)
        assert isinstance(connection.default_channel, Channel)


def test_a_message_for_an_empty_list_wakes_workers(publisher: Publisher, woken: Any) -> None:
    for number in range(3):
        publisher.publish(Message(f"job-{number}", "orcd.demo", 5))
    publisher.publish(Message("job-3", "orcd.demo", 0))
    assert woken() == [b"orcd.demo:5", b"orcd.demo"], "who finds work looks for more by himself"


def test_a_message_wakes_again_when_the_list_was_emptied(
    publisher: Publisher, connection: redis.Redis, woken: Any
) -> None:
    publisher.publish(Message("job-1", "orcd.demo", 5))
    connection.rpop("orcd.demo:5")
    publisher.publish(Message("job-2", "orcd.demo", 5))
    assert woken() == [b"orcd.demo:5"] * 2


@pytest.fixture
def warnings_here(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is logged, as if nothing had been said yet."""
    say_wrong_type.cache_clear()
    return caplog


def lists_of(connection: redis.Redis, queue: str) -> list[bytes]:
    return sorted(connection.scan_iter(queue + "*", _type="list"))


@pytest.mark.parametrize("queue", ["orcd", "orcd.demo"])
def test_the_key_of_a_priority_that_nobody_uses_keeps_no_message_back(
    publisher: Publisher, connection: redis.Redis, queue: str
) -> None:
    """F15: no job of the queue was announced any more, as Celery counts the messages of all priorities."""
    connection.set(f"{queue}:9", "no list")
    publisher.publish(Message("job-1", queue, 5))
    assert lists_of(connection, queue) == [f"{queue}:5".encode()]


@pytest.mark.parametrize(
    ("broken", "used"), [([5], 4), ([5, 4], 3), ([5, 4, 3, 2, 1], 0), (range(6), 6), (range(9), 9)]
)
def test_a_message_whose_list_cannot_be_used_goes_to_the_nearest_that_can(
    publisher: Publisher, connection: redis.Redis, woken: Any, broken: list[int], used: int
) -> None:
    """F15: one that is more urgent, if there is any."""

    def key_of(priority: int) -> str:
        return f"orcd.demo:{priority}" if priority else "orcd.demo"

    for priority in broken:
        connection.set(key_of(priority), "no list")
    publisher.publish(Message("job-1", "orcd.demo", 5))
    assert lists_of(connection, "orcd.demo") == woken() == [key_of(used).encode()]


def test_a_queue_none_of_whose_lists_can_be_used_stops_no_other(publisher: Publisher, connection: redis.Redis) -> None:
    """F15."""
    for priority in PRIORITIES:
        connection.set(f"orcd.demo:{priority}" if priority else "orcd.demo", "no list")
    with pytest.raises(OperationalError):
        publisher.publish(Message("job-1", "orcd.demo", 5))
    publisher.publish(Message("job-2", "orcd", 5))
    assert lists_of(connection, "orcd") == [b"orcd:5"]


def test_a_full_redis_is_not_taken_for_a_key_of_another_type(publisher: Publisher, connection: redis.Redis) -> None:
    connection.config_set("maxmemory", 1)
    try:
        with pytest.raises(OperationalError, match="maxmemory"):
            publisher.publish(Message("job-1", "orcd.demo", 5))
    finally:
        connection.config_set("maxmemory", 0)
    assert lists_of(connection, "orcd.demo") == []


@pytest.mark.parametrize("key", ["_kombu.binding.orcd", "_kombu.binding_permanent.orcd"])
def test_a_table_of_bindings_that_is_none_keeps_no_message_back_and_is_named_in_the_log(
    publisher: Publisher, connection: redis.Redis, warnings_here: pytest.LogCaptureFixture, key: str
) -> None:
    """F15: nothing could be sent."""
    connection.set(key, "no set")
    publisher.publish(Message("job-1", "orcd", 5))
    publisher.publish(Message("job-2", "orcd.demo", 5))
    assert lists_of(connection, "orcd") == [b"orcd.demo:5", b"orcd:5"]
    (said,) = [record.msg for record in warnings_here.records if record.name == "orcd.store.broker"]
    assert key in said
    assert connection.get(key) == b"no set", "somebody may want it"


def test_without_a_table_of_bindings_messages_go_where_this_process_has_bound_their_exchange(
    publisher: Publisher, connection: redis.Redis
) -> None:
    """F15: for those that name the exchange and not the queue."""
    connection.set("_kombu.binding.some", "no set")
    with publisher.open().connections.acquire() as sender:
        exchange = kombu.Exchange("some", type="direct")
        queue = kombu.Queue("orcd.demo", exchange, routing_key="key")
        sender.Producer().publish({}, exchange=exchange, routing_key="key", declare=[queue], retry=False)
    assert lists_of(connection, "orcd.demo") == [b"orcd.demo"]


def test_a_redis_that_refuses_a_command_is_a_lost_connection_to_kombu() -> None:
    for error in (redis.ReadOnlyError, redis.OutOfMemoryError, redis.ResponseError, redis.ConnectionError):
        assert issubclass(error, Transport.connection_errors)
