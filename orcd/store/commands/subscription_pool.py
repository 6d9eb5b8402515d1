"""Subscriptions of ended jobs, for the next ones."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from redis.exceptions import RedisError

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
            while subscription.subscribed:
                if _is_late(subscription.get_message(timeout=ANSWER_S)):
                    subscription.close()
        except RedisError:
            subscription.close()
        try:
            yield subscription
        except BaseException:
            subscription.close()
            raise
        try:
            subscription.unsubscribe()
        except RedisError:  # nobody waits for anything on it any more
            subscription.close()
            return
        for old in self._keep(subscription):
            old.close()

    @asynccontextmanager
    async def subscription_async(self) -> AsyncIterator[Any]:
        """One of a ``redis.asyncio.Redis`` that is subscribed to nothing."""
        subscription = self._take()
        try:
            while subscription.subscribed:
                if _is_late(await subscription.get_message(timeout=ANSWER_S)):
                    await subscription.aclose()
        except RedisError:
            await subscription.aclose()
        try:
            yield subscription
        except BaseException:
            await subscription.aclose()
            raise
        try:
            await subscription.unsubscribe()
        except RedisError:  # nobody waits for anything on it any more
            await subscription.aclose()
            return
        for old in self._keep(subscription):
            await old.aclose()

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

    def _keep(self, subscription: Any) -> list[Any]:
        """Returns those that were not used for too long: nobody else has them any more."""
        now, old = time.monotonic(), []
        self._kept.append((os.getpid(), now, subscription))
        with suppress(IndexError):  # another thread may take them meanwhile
            while self._kept[0][1] < now - KEPT_S:
                old.append(self._kept.popleft()[2])
        return old


def _is_late(message: dict[str, Any] | None) -> bool:
    """Whether the end of a subscription is not confirmed in time, or it has begun anew on another connection.

    What is read before that are messages to the one that had it before.
    """
    return message is None or message["type"] == "subscribe"
