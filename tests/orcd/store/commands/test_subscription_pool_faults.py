"""What a subscription pool holds after cancelled tasks, cut connections and a Redis that stands still."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack

import redis
import redis.asyncio

from orcd.settings import ClientSettings
from orcd.store.commands.subscription_pool import MAX_KEPT, SubscriptionPool
from orcd.store.redis_connection import connect_async
from tasks.local.redis_server import RedisServer
from tests.conftest import wait_until
from tests.orcd.redis_servers import standing_still


def num_clients(connection: redis.Redis) -> int:
    return len(connection.client_list())


async def until_few(connection: redis.Redis, num_left: int) -> None:
    """Wait until no more connections are open: Redis may hear later of those that were closed."""
    async with asyncio.timeout(30):
        while num_clients(connection) > num_left:
            await asyncio.sleep(0.005)


def test_tasks_that_are_cancelled_at_any_point_leave_no_connection_behind(redis_url: str, connection: redis.Redis):
    async def run() -> None:
        async with connect_async(ClientSettings(redis_url=redis_url)) as client:
            pool = SubscriptionPool(client)

            async def use() -> None:
                async with pool.subscription_async() as subscription:
                    await subscription.subscribe("a")

            await use()
            before = num_clients(connection)
            for num_steps in range(16):
                await use()
                task = asyncio.create_task(use())
                for _ in range(num_steps):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
            await use()
            await until_few(connection, before)

    asyncio.run(run())


def test_a_redis_that_stands_still_is_not_waited_for_before_the_next_subscription(redis_server: RedisServer):
    async def run() -> None:
        async with connect_async(ClientSettings(redis_url=redis_server.url)) as client:
            pool = SubscriptionPool(client)
            async with pool.subscription_async() as subscription:
                await subscription.subscribe("a")
            with standing_still(redis_server):
                async with asyncio.timeout(10), pool.subscription_async() as subscription:
                    assert not subscription.subscribed

    asyncio.run(run())


def test_a_redis_that_stands_still_is_not_waited_for_when_a_stream_has_ended(redis_server: RedisServer):
    async def run() -> None:
        async with connect_async(ClientSettings(redis_url=redis_server.url)) as client:
            using = SubscriptionPool(client).subscription_async()
            subscription = await using.__aenter__()
            await subscription.subscribe("a")
            with standing_still(redis_server):
                await subscription.ping()
                await asyncio.sleep(0.1)  # the event loop hears that nobody is there any more
                async with asyncio.timeout(10):
                    await using.__aexit__(None, None, None)

    asyncio.run(run())


def test_after_many_streams_at_once_few_connections_are_kept(redis_url: str, connection: redis.Redis):
    client = redis.Redis.from_url(redis_url)
    pool = SubscriptionPool(client)
    before = num_clients(connection)
    with ExitStack() as stack:
        for index in range(MAX_KEPT + 20):
            stack.enter_context(pool.subscription()).subscribe(str(index))
    wait_until(lambda: num_clients(connection) <= before + MAX_KEPT)
    client.close()


def test_after_many_streams_at_once_few_connections_are_kept_on_an_event_loop(redis_url: str, connection: redis.Redis):
    async def run() -> None:
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            pool = SubscriptionPool(client)
            before = num_clients(connection)
            async with AsyncExitStack() as stack:
                for index in range(MAX_KEPT + 20):
                    subscription = await stack.enter_async_context(pool.subscription_async())
                    await subscription.subscribe(str(index))
            await until_few(connection, before + MAX_KEPT)

    asyncio.run(run())
