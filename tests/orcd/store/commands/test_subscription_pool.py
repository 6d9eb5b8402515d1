"""A subscription whose job has ended is used for the next one; any other is closed."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
import redis
import redis.asyncio

from orcd.settings import ClientSettings
from orcd.store.commands import subscription_pool
from orcd.store.commands.subscription_pool import SubscriptionPool
from orcd.store.redis_connection import connect
from tests.conftest import wait_until


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is closed because the machine is busy."""
    for name in ("KEPT_S", "ANSWER_S"):
        monkeypatch.setattr(subscription_pool, name, 60.0)


def heard(subscription: Any) -> tuple[str, bytes, Any]:
    """The next message: what it is, its channel, what it holds."""
    message = subscription.get_message(timeout=60)
    return message["type"], message["channel"], message["data"]


def test_the_next_one_has_the_same_connection_and_hears_nothing_of_before(connection: redis.Redis):
    pool = SubscriptionPool(connection)
    ids = set()
    for name in ("a", "b", "b"):
        with pool.subscription() as subscription:
            subscription.subscribe(name)
            assert heard(subscription) == ("subscribe", name.encode(), 1)
            assert connection.publish(name, "x") == 1
            assert heard(subscription) == ("message", name.encode(), b"x")
            connection.publish(name, "nobody reads this")
            ids.add(id(subscription.connection))
        wait_until(lambda name=name: connection.pubsub_numsub(name) == [(name.encode(), 0)])
    assert len(ids) == 1


def test_two_at_once_are_two(connection: redis.Redis):
    pool = SubscriptionPool(connection)
    with pool.subscription() as one, pool.subscription() as other:
        one.subscribe("a")
        other.subscribe("b")
        assert one.connection is not other.connection


def test_one_that_was_given_back_with_an_error_is_closed(connection: redis.Redis):
    pool = SubscriptionPool(connection)
    with pytest.raises(ZeroDivisionError), pool.subscription() as subscription:
        subscription.subscribe("a")
        raise ZeroDivisionError
    assert subscription.connection is None
    with pool.subscription() as other:
        assert other is not subscription
        other.subscribe("b")


def test_one_that_was_not_used_for_a_while_is_closed(connection: redis.Redis, monkeypatch: pytest.MonkeyPatch):
    pool = SubscriptionPool(connection)
    with pool.subscription() as old:
        old.subscribe("a")
    monkeypatch.setattr(subscription_pool, "KEPT_S", -1.0)
    with pool.subscription() as new:
        assert new is not old
        new.subscribe("b")
    assert old.connection is None


def test_one_whose_connection_was_cut_meanwhile_is_connected_again(redis_url: str, connection: redis.Redis):
    client = connect(ClientSettings(redis_url=redis_url))
    pool = SubscriptionPool(client)
    with pool.subscription() as subscription:
        subscription.subscribe("a")
    connection.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    connection.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    with pool.subscription() as again:
        again.subscribe("b")
        assert heard(again) == ("subscribe", b"b", 1)
        assert connection.publish("b", "x") == 1
    client.close()


def test_a_forked_process_uses_none_of_its_parent_s(connection: redis.Redis, monkeypatch: pytest.MonkeyPatch):
    pool = SubscriptionPool(connection)
    with pool.subscription() as subscription:
        subscription.subscribe("a")
    other_process = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: other_process)
    with pool.subscription() as other:
        assert other is not subscription


def test_the_asyncio_client_does_the_same(redis_url: str, connection: redis.Redis):
    async def run() -> None:
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            pool = SubscriptionPool(client)
            seen = []
            for name in ("a", "b"):
                async with pool.subscription_async() as subscription:
                    await subscription.subscribe(name)
                    message = await subscription.get_message(timeout=60)
                    assert (message["type"], message["channel"]) == ("subscribe", name.encode())
                    await client.publish(name, "nobody reads this")
                    seen.append(subscription)
            assert seen[0] is seen[1]
            with pytest.raises(ZeroDivisionError):
                async with pool.subscription_async() as subscription:
                    await subscription.subscribe("c")
                    raise ZeroDivisionError
            assert subscription is seen[0]
            assert subscription.connection is None

    asyncio.run(run())
    wait_until(lambda: not any(num for _, num in connection.pubsub_numsub("a", "b", "c")))
