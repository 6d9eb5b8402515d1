"""Commands whose answers do not take for ever, of clients of both kinds."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.asyncio.client import Pipeline
from redis.retry import Retry

T = TypeVar("T")

ANSWER_TIMEOUT_S = 15


class RetryIf(Retry):
    """Tries a command again only after errors that `condition` finds worth it."""

    @abstractmethod
    def condition(self) -> Callable[[Exception], bool]:
        """What is asked after each error of one command, which begins now."""

    def call_with_retry(
        self,
        do: Callable[[], T],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> T:
        """The result of ``do``. Raises its error if that is not worth another try; see redis-py."""
        condition = self.condition()

        def is_worth_it(error: Exception) -> bool:
            return condition(error) and (is_retryable is None or is_retryable(error))

        return super().call_with_retry(do, fail, is_worth_it, with_failure_count)


class TimedRetry(RetryIf):
    """Tries a command again only in the time that its answer may take: not where that is what has passed in vain."""

    def condition(self) -> Callable[[Exception], bool]:
        """Whether that time is left."""
        end = time.monotonic() + ANSWER_TIMEOUT_S
        return lambda _: time.monotonic() < end


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
