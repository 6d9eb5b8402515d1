from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis

from orcd.settings import ClientSettings
from orcd.store.commands import timed_redis
from orcd.store.redis_connection import connect_async
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
