"""Scripts that Redis forgets while they are called."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.exceptions import NoScriptError

from orcd.store.commands.redis_script import AsyncRedisScript, RedisScript

ADD = "return redis.call('INCRBY', KEYS[1], ARGV[1])"


def test_a_script_that_redis_does_not_know_is_sent_as_text_and_runs_once(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as connection:
        connection.script_flush()
        add = RedisScript(connection, ADD)
        assert add(["n"], [2]) == 2
        connection.config_resetstat()
        assert add(["n"], [3]) == 5
        seen = connection.info("commandstats")
        assert seen["cmdstat_evalsha"]["calls"] == 1
        assert "cmdstat_eval" not in seen


def test_it_does_not_matter_which_of_two_servers_gets_each_command(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During a failover one command may reach the old master and the next one the new: no SHA-1 is relied on."""

    def refused(self: object, *arguments: object) -> None:
        raise NoScriptError

    with redis.Redis.from_url(redis_url) as connection:
        monkeypatch.setattr(redis.Redis, "evalsha", refused)
        assert RedisScript(connection, ADD)(["n"], [2]) == 2


def test_a_script_of_an_asynchronous_connection_is_sent_as_text_too(redis_url: str) -> None:
    async def call_twice() -> list[Any]:
        async with redis.asyncio.Redis.from_url(redis_url) as connection:
            await connection.script_flush()
            add = AsyncRedisScript(connection, ADD)
            return [await add(["n"], [2]), await add(["n"], [3])]

    assert asyncio.run(call_twice()) == [2, 5]
