"""The client when Redis is cut off, restarted, gone, full or forgetful."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from orcd.async_client import AsyncClient
from orcd.client import Client
from orcd.errors import InvalidRequest, OrcdError, RedisUnavailable
from orcd.events import Error, Event, Token
from orcd.store import redis_connection, schema
from orcd.store.job_store import JobStore
from tasks.local.redis_server import RedisServer
from tests.chaos.system.redis_service import RedisService
from tests.conftest import wait_until
from tests.orcd.job_writer import MakeStore, claimed, ended_job, indices


def test_a_cut_connection_loses_nothing(client: Client, make_store: MakeStore, background, connection: redis.Redis):
    job_id = client.submit(prompt="x")
    reading = background(lambda: list(client.events(job_id)))
    wait_until(lambda: connection.pubsub_numsub(schema.events_channel(job_id))[0][1] == 1)
    writer = claimed(make_store(), job_id)
    writer.start()
    for number in range(60):
        time.sleep(0.002)
        writer.tokens(1)
        if number % 10 == 5:
            for client_type in ("pubsub", "normal"):
                connection.execute_command("CLIENT", "KILL", "TYPE", client_type, "SKIPME", "yes")
    writer.end()
    assert indices(reading.result(timeout=60)) == list(range(1, 61))


def test_a_restart_of_redis_loses_nothing(redis_server: RedisServer):
    # The server is started again on the main thread, so the reader is the one that goes elsewhere.
    with Client(redis_server.url) as client, ThreadPoolExecutor(1) as pool:
        job_id = client.submit(prompt="x")
        reading = pool.submit(lambda: list(client.events(job_id)))
        with redis.Redis.from_url(redis_server.url) as connection:
            writer = claimed(JobStore(connection, owner="w", model="m", lease_ms=60_000, ttl_s=60), job_id)
            writer.start()
            writer.tokens(3)
            redis_server.kill()
            time.sleep(0.3)
            redis_server.start()
            writer.tokens(2)
            writer.end()
        assert indices(reading.result(timeout=60)) == [1, 2, 3, 4, 5]


def test_a_stream_that_begins_while_redis_is_away_waits_for_it(redis_server: RedisServer):
    with Client(redis_server.url) as client, ThreadPoolExecutor(1) as pool:
        job_id = client.submit(prompt="x")
        client.cancel(job_id)
        redis_server.kill()
        reading = pool.submit(lambda: client.result(job_id))
        time.sleep(1.5)
        assert not reading.done()
        redis_server.start()
        assert reading.result(timeout=60).state == "cancelled"


def test_a_redis_that_stays_away_ends_the_stream_with_one_clear_error(redis_server: RedisServer):
    with Client(redis_server.url, reconnect_s=0.3) as client:
        events = client.events(client.submit(prompt="x"))
        next(events)
        redis_server.kill()
        with pytest.raises(RedisUnavailable, match=f"cannot reach Redis at {redis_server.url}; start it or set"):
            list(events)


def test_a_stream_goes_on_after_a_redis_that_could_not_save(short_poll: None, monkeypatch: pytest.MonkeyPatch):
    """Meanwhile it refuses writes, and even PING, by which a connection that was idle is tried."""
    monkeypatch.setattr(redis_connection, "HEALTH_CHECK_S", 0.2)

    async def follow(url: str, job_id: str) -> list[Event]:
        async with AsyncClient(url) as client:
            return [event async for event in client.events(job_id)]

    with RedisService({}) as service, Client(service.url) as client, ThreadPoolExecutor(2) as pool:
        job_id = client.submit(prompt="x")
        readings = [
            pool.submit(lambda: list(client.events(job_id))),
            pool.submit(lambda: asyncio.run(follow(service.url, job_id))),
        ]
        with service.broken_snapshots():
            time.sleep(2)
        client.cancel(job_id)
        for reading in readings:
            assert isinstance(reading.result(timeout=60)[-1], Error)


def test_a_job_that_vanishes_ends_the_stream(client: Client, connection: redis.Redis, short_poll: None):
    events = client.events(client.submit(prompt="x"))
    next(events)
    connection.flushall()
    with pytest.raises(InvalidRequest, match="unknown; it was never submitted here or is no longer kept"):
        list(events)


def test_a_log_that_vanishes_ends_the_stream(client: Client, make_store: MakeStore, connection: redis.Redis):
    job_id = ended_job(client, make_store())
    connection.delete(schema.log_key(job_id))
    with pytest.raises(OrcdError, match="its token log is damaged or gone"):
        list(client.events(job_id))


def test_what_was_logged_but_never_heard_is_found(client: Client, make_store: MakeStore, short_poll: None):
    job_id = client.submit(prompt="x")
    events = client.events(job_id)
    next(events)
    store = make_store()
    claimed(store, job_id)
    store.redis.hset(schema.job_key(job_id), "state", "succeeded")
    store.redis.xadd(schema.log_key(job_id), {"e": b'{"type":"token","t":"a","i":1,"ids":[5]}'}, id="1-0")
    end = b'{"type":"error","code":"INTERNAL","message":"it broke","retriable":false}'
    store.redis.xadd(schema.log_key(job_id), {"e": end}, id="1-1")
    assert list(events) == [Token("a", 1, [5]), Error("INTERNAL", "it broke", False)]


def test_redis_not_there_is_one_line_without_the_password():
    with Client("redis://:secret@127.0.0.1:1/0", reconnect_s=0.3) as client:
        for call in (
            lambda: client.submit(prompt="x"),
            lambda: client.cancel("a"),
            lambda: list(client.events("a")),
        ):
            with pytest.raises(RedisUnavailable) as caught:
                call()
            assert caught.value.message == (
                "cannot reach Redis at redis://:**@127.0.0.1:1/0; start it or set ORCD_REDIS_URL"
            )
            assert caught.value.retriable


def test_a_wrong_password_is_told_from_a_missing_server(redis_server: RedisServer):
    with redis.Redis.from_url(redis_server.url) as connection:
        connection.config_set("requirepass", "right")
    for url in (redis_server.url, redis_server.url.replace("//", "//:wrong@")):
        with Client(url) as client, pytest.raises(RedisUnavailable, match="refuses the password"):
            client.status("a")


def test_a_full_redis_is_an_error_that_quotes_no_prompt(redis_server: RedisServer):
    with Client(redis_server.url) as client, redis.Redis.from_url(redis_server.url) as connection:
        connection.config_set("maxmemory", 1)
        with pytest.raises(RedisUnavailable) as caught:
            client.submit(prompt="CANARY")
    assert caught.value.message == f"Redis at {redis_server.url} is full; raise its maxmemory"


def test_a_command_that_redis_refuses_is_an_error_that_quotes_no_prompt(redis_server: RedisServer):
    with redis.Redis.from_url(redis_server.url) as connection:
        connection.execute_command("ACL", "SETUSER", "default", "-evalsha")
    with Client(redis_server.url) as client, pytest.raises(RedisUnavailable) as caught:
        client.submit(prompt="CANARY")
    assert caught.value.message == f"Redis at {redis_server.url} refused a command: NoPermissionError"


def test_a_url_that_is_none_is_refused():
    with pytest.raises(InvalidRequest, match="redis_url: must look like redis://HOST:PORT/DB"):
        Client("localhost")


def test_the_url_comes_from_the_environment(redis_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ORCD_REDIS_URL", redis_url)
    with Client() as client:
        assert client.status(client.submit(prompt="x")).state == "queued"
