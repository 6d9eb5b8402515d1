from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis

from orcd.settings import ClientSettings
from orcd.store.commands import timed_redis
from orcd.store.commands.timed_redis import TimedRetry
from orcd.store.redis_address import RedisAddress
from orcd.store.redis_connection import NUM_RETRIES, RETRY_BACKOFF, connect_async, make_pool
from tasks.local.redis_server import RedisServer
from tests.orcd.redis_servers import standing_still


@pytest.mark.parametrize("ask", [lambda asked: asked.get("x"), lambda asked: asked.pipeline().get("x").execute()])
def test_who_asks_a_server_that_stands_still_is_told_so_and_asks_again_on_another_connection(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Any], Awaitable[Any]]
) -> None:
    monkeypatch.setattr(timed_redis, "ANSWER_TIMEOUT_S", 0.5)

    async def main() -> None:
        async with connect_async(ClientSettings(redis_url=redis_server.url)) as asked:
            await asked.set("x", "late")
            with standing_still(redis_server), pytest.raises(redis.TimeoutError, match="no answer within"):
                await ask(asked)
            monkeypatch.undo()
            assert await asked.get("y") is None, "the answer to the other question is not read as this one's"

    asyncio.run(main())


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_what_has_not_answered_in_time_is_not_asked_as_long_again(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took a client 60 s to say that a Redis stands still, or knows no TLS."""
    monkeypatch.setattr(timed_redis, "ANSWER_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = RedisAddress.parse(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}")
        pool = make_pool(address, retry=TimedRetry(RETRY_BACKOFF, NUM_RETRIES), socket_timeout=0.5)
        with redis.Redis.from_pool(pool) as asked, pytest.raises(redis.TimeoutError):
            asked.get("x")
        silent.accept()[0].close()
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.accept()
