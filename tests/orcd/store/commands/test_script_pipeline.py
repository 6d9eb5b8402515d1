"""Calls of scripts in one go, with a Redis that knows them and one that does not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis
import redis.asyncio

from orcd.store.commands.script_pipeline import ScriptPipeline

COUNT = "return redis.call('INCR', 'count') + ARGV[1]"
READ = "return redis.call('GET', 'count')"


@pytest.fixture(autouse=True)
def no_scripts(connection: redis.Redis) -> None:
    connection.script_flush()


def calls(connection: redis.Redis) -> dict[str, int]:
    """How often Redis ran each command since the test began."""
    return {name: each["calls"] for name, each in connection.info("commandstats").items()}


def test_scripts_that_redis_knows_are_called_without_asking_for_them(connection: redis.Redis):
    count: Any = connection.register_script(COUNT)
    count(args=[0])
    connection.config_resetstat()
    assert ScriptPipeline.of(count, [[10], [20]]).execute(connection) == [12, 23]
    seen = calls(connection)
    assert seen["cmdstat_evalsha"] == 2
    assert not {"cmdstat_eval", "cmdstat_script|exists", "cmdstat_script|load"} & seen.keys()


def test_a_script_that_redis_does_not_know_is_sent_as_text_and_runs_once(connection: redis.Redis):
    count: Any = connection.register_script(COUNT)
    read: Any = connection.register_script(READ)
    read()
    pipeline = ScriptPipeline()
    pipeline.call(read, [])
    pipeline.call(count, [10])
    pipeline.call(read, [])
    pipeline.add("GET", "count")
    answers = pipeline.execute(connection)
    assert answers == [None, 11, None, b"1"], "what ran is not called again, and a plain command is repeated behind it"
    assert connection.get("count") == b"1"


def test_the_asyncio_client_does_the_same(redis_url: str, connection: redis.Redis):
    async def run() -> list[Any]:
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            pipeline = ScriptPipeline.of(client.register_script(COUNT), [[10], [20]])
            pipeline.add("GET", "count")
            return await pipeline.execute_async(client)

    assert asyncio.run(run()) == [11, 22, b"2"]
    assert asyncio.run(run()) == [13, 24, b"4"]


def test_the_first_error_is_raised_or_left_among_the_answers(connection: redis.Redis):
    connection.lpush("count", "no number")
    pipeline = ScriptPipeline.of(connection.register_script(COUNT), [[1]])
    pipeline.add("LLEN", "count")
    error, length = pipeline.execute(connection, raise_on_error=False)
    assert isinstance(error, redis.ResponseError)
    assert length == 1
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        pipeline.execute(connection)
