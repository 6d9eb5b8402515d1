"""What the asyncio client does when Redis goes wrong in ways that redis-py itself would wait for without end."""

from __future__ import annotations

import asyncio

import pytest

from orcd.async_client import AsyncClient
from orcd.errors import InvalidRequest, RedisUnavailable
from orcd.events import Queued
from orcd.store.commands import timed_redis
from tasks.local.redis_server import RedisServer
from tests.orcd.redis_servers import standing_still


def test_a_redis_that_stands_still_while_a_stream_connects_again_ends_it_in_time(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(timed_redis, "ANSWER_TIMEOUT_S", 2.5)

    async def main() -> None:
        async with AsyncClient(redis_server.url, reconnect_s=1) as client:
            events = client.events(await client.submit(prompt="x"))
            assert isinstance(await anext(events), Queued)
            with standing_still(redis_server):
                async with asyncio.timeout(20):
                    with pytest.raises(RedisUnavailable):
                        await anext(events)

    asyncio.run(main())


def test_a_client_of_another_event_loop_says_so(redis_url: str):
    """It was asyncio that said something: that the event loop is closed."""

    async def submit(client: AsyncClient) -> str:
        return await client.submit(prompt="x")

    async def follow(client: AsyncClient) -> None:
        await anext(client.events("a"))

    client = AsyncClient(redis_url)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(submit(client))
        for call in (submit, follow):
            with pytest.raises(InvalidRequest, match="on another event loop before; make one for each"):
                second.run(call(client))
        second.run(client.close())
        first.run(client.close())
        assert second.run(submit(client)), "who has given its connections back begins anew"
        second.run(client.close())
