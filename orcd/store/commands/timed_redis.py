"""A connection of asyncio whose answers do not take for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.client import Pipeline

ANSWER_TIMEOUT_S = 15


@asynccontextmanager
async def answer_in_time() -> AsyncGenerator[None, None]:
    """Bound the time that Redis may take. Raises `redis.TimeoutError`.

    redis-py's own socket_timeout is of no use here: it calls asyncio.wait_for, which on Python 3.11 may swallow the
    cancellation of a task that just then gets its answer; the task then goes on for ever.
    """
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            yield
    except TimeoutError:
        raise redis.TimeoutError(f"no answer within {ANSWER_TIMEOUT_S} s") from None


class TimedRedis(redis.asyncio.Redis):
    """Every command and every pipeline is answered in time, or fails. Subscriptions wait for as long as they are told.

    A server that stands still, or whose machine is gone, would otherwise be waited for until TCP gives up.
    """

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """See redis-py."""
        async with answer_in_time():
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py leaves it so

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """See redis-py."""
        return _TimedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _TimedPipeline(Pipeline):
    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        async with answer_in_time():
            return await super().execute(raise_on_error)
