"""Subscriptions of ended jobs, for the next ones."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from redis.exceptions import RedisError

MAX_KEPT = 64
"""Connections kept at most: after many streams at once the others are closed."""
KEPT_S = 5.0
"""A connection that was not used for so long may be dead without anybody having noticed: it is not used again."""
ANSWER_S = 1.0
"""How long a kept subscription may take to confirm that it ended; usually it has long done so."""


class SubscriptionPool:
    """Lends redis-py's subscriptions and keeps their connections, which redis-py closes. Thread-safe.

    One that was given back with an error is closed, so is one that nobody has used for a while; a forked process has
    its own.
    """

    def __init__(self, connection: Any) -> None:
        """``connection`` is a ``redis.Redis`` or ``redis.asyncio.Redis``; its end closes what is kept."""
        self._connection = connection
        self._kept: deque[tuple[int, float, Any]] = deque()

    @contextmanager
    def subscription(self) -> Iterator[Any]:
        """One of a ``redis.Redis`` that is subscribed to nothing."""
        subscription = self._take()
        try:
            with suppress(RedisError):
                while subscription.subscribed and not _is_late(subscription.get_message(timeout=ANSWER_S)):
                    pass
            if subscription.subscribed:
                subscription.close()
            yield subscription
            try:
                subscription.unsubscribe()
            except RedisError:  # nobody waits for anything on it any more
                subscription.close()
                return
        except BaseException:
            subscription.close()
            raise
        self._keep(subscription)
        while (spare := self._take_spare()) is not None:
            spare.close()

    @asynccontextmanager
    async def subscription_async(self) -> AsyncIterator[Any]:
        """One of a ``redis.asyncio.Redis`` that is subscribed to nothing."""
        subscription = self._take()
        try:
            with suppress(RedisError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):  # also for the new connection in place of one that was cut
                    while subscription.subscribed and not _is_late(await subscription.get_message(timeout=ANSWER_S)):
                        pass
            if subscription.subscribed:
                await subscription.aclose()
            yield subscription
            try:
                async with asyncio.timeout(ANSWER_S):
                    await subscription.unsubscribe()
            except (RedisError, TimeoutError):  # nobody waits for anything on it any more
                await subscription.aclose()
                return
        except BaseException:  # redis-py closes no connection because nobody has it any more
            await subscription.aclose()
            raise
        self._keep(subscription)
        while (spare := self._take_spare()) is not None:
            await spare.aclose()

    def _take(self) -> Any:
        try:
            process, since, subscription = self._kept.pop()
        except IndexError:
            return self._connection.pubsub()
        if process != os.getpid():
            self._kept.clear()
        elif time.monotonic() < since + KEPT_S:
            return subscription
        else:
            self._kept.append((process, since, subscription))
        return self._connection.pubsub()

    def _keep(self, subscription: Any) -> None:
        self._kept.append((os.getpid(), time.monotonic(), subscription))

    def _take_spare(self) -> Any:
        """One that was not used for too long, or is one too many; None if there is none."""
        with suppress(IndexError):  # another thread may take them meanwhile
            if len(self._kept) > MAX_KEPT or self._kept[0][1] < time.monotonic() - KEPT_S:
                return self._kept.popleft()[2]
        return None


def _is_late(message: dict[str, Any] | None) -> bool:
    """Whether the end of a subscription is not confirmed in time, or it has begun anew on another connection.

    What is read before that are messages to the one that had it before.
    """
    return message is None or message["type"] == "subscribe"
