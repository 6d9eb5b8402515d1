"""Messages in lists, and how tests have a receiver take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis

from tasks.celery_ext.receiver import Receiver

MakeReceiver = Callable[..., Receiver]


def send(connection: redis.Redis, key: str, *messages: str) -> None:
    connection.lpush(key, *messages)


def waiting(connection: redis.Redis, key: str) -> list[str]:
    """What waits in a list, the next one first."""
    return [text.decode() for text in reversed(connection.lrange(key, 0, -1))]


def take(connection: redis.Redis, receiver: Receiver, most: int = 9, keys: tuple[str, ...] = ("a", "b")) -> list[Any]:
    messages = receiver.taken(connection.execute_command(*receiver.take_command(keys, most)))
    return [(tag, key, text.decode()) for tag, key, text in messages]
