"""A script that runs on whichever server gets the call."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import NoScriptError


class RedisScript:
    """A Lua ``script`` and its SHA-1 ``sha``, called on ``connection`` with keys and arguments.

    redis-py's own loads a script that the server does not know and calls it by its SHA-1 once more. During a failover
    the two commands may reach different servers, and the second one fails. Here it is sent once more as text.
    """

    def __init__(self, connection: redis.Redis | redis.asyncio.Redis, script: str) -> None:
        self.connection: Any = connection
        self.script = script
        self.sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, keys: Sequence[Any] = (), args: Iterable[Any] = ()) -> Any:
        """What the script returns."""
        following = (len(keys), *keys, *args)
        try:
            return self.connection.evalsha(self.sha, *following)
        except NoScriptError:
            return self.connection.eval(self.script, *following)


class AsyncRedisScript(RedisScript):
    """`RedisScript` on a connection of asyncio."""

    async def __call__(self, keys: Sequence[Any] = (), args: Iterable[Any] = ()) -> Any:
        """What the script returns."""
        following = (len(keys), *keys, *args)
        try:
            return await self.connection.evalsha(self.sha, *following)
        except NoScriptError:
            return await self.connection.eval(self.script, *following)
