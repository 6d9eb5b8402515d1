"""What senders and receivers of Celery messages have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from orcd.settings import ClientSettings
from orcd.store import schema
from orcd.store.broker import Channel, Transport
from orcd.store.enqueue import Message, Publisher


@pytest.fixture
def publisher(redis_url: str) -> Iterator[Publisher]:
    publisher = Publisher(ClientSettings(redis_url=redis_url))
    yield publisher
    publisher.close()


@pytest.fixture
def woken(connection: redis.Redis) -> Iterator[Any]:
    """A function that returns the lists for which workers were woken since the last call."""
    with connection.pubsub(ignore_subscribe_messages=True) as subscription:
        subscription.subscribe(schema.WAKE)
        subscription.get_message(timeout=1)

        def lists() -> list[bytes]:
            received = iter(lambda: subscription.get_message(timeout=0.1), None)
            return [message["data"] for message in received]

        yield lists


def test_the_connections_of_a_pool_have_our_transport_too(publisher: Publisher) -> None:
    with publisher._connections.acquire() as connection:
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


def test_a_redis_that_refuses_a_command_is_a_lost_connection_to_kombu() -> None:
    for error in (redis.ReadOnlyError, redis.OutOfMemoryError, redis.ResponseError, redis.ConnectionError):
        assert issubclass(error, Transport.connection_errors)
