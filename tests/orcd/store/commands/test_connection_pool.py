"""Connections that wait in the kernel, and are looked at only after a while."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orcd.settings import ClientSettings
from orcd.store.commands import connection_pool
from orcd.store.redis_address import RedisAddress
from orcd.store.redis_connection import connect, make_pool
from tasks.local.redis_server import RedisServer
from tests.orcd.redis_servers import ConfiguredServer


def _client(url: str, *, num_retries: int = 0, timeout_s: float = 15) -> Any:
    pool = make_pool(RedisAddress.parse(url), retry=Retry(NoBackoff(), num_retries), socket_timeout=timeout_s)
    return redis.Redis.from_pool(pool)


def _kill_others(connection: redis.Redis) -> None:
    connection.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def test_an_answer_that_does_not_come_in_time_is_an_error_that_says_so(redis_url: str) -> None:
    with _client(redis_url, timeout_s=0.25) as client:
        start = time.monotonic()
        with pytest.raises(redis.TimeoutError):
            client.blpop("nothing", timeout=60)
        assert 0.25 <= time.monotonic() - start < 60
        assert client.ping(), "on a new connection"


def test_a_command_that_cannot_be_written_in_time_is_an_error_that_says_so(redis_server: RedisServer) -> None:
    with _client(redis_server.url, timeout_s=0.25) as client:
        process = client.info("server")["process_id"]
        connection = client.connection_pool.get_connection()
        os.kill(process, signal.SIGSTOP)
        try:
            with pytest.raises(redis.TimeoutError, match="writing"):
                connection.send_command("SET", "key", b"x" * 100_000_000)
        finally:
            os.kill(process, signal.SIGCONT)
            client.connection_pool.release(connection)


def test_sockets_for_which_the_kernel_does_not_wait_have_their_own_timeout(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of gevent: DEBUG SLEEP was waited for to its end."""
    monkeypatch.setattr(os, "get_blocking", lambda _: False)
    with _client(redis_url, timeout_s=0.25) as client:
        client.ping()
        (connection,) = client.connection_pool._available_connections
        assert connection._sock.gettimeout() == 0.25
        with pytest.raises(redis.TimeoutError):
            client.blpop("nothing", timeout=60)
        monkeypatch.undo()
        assert client.ping()


def test_no_command_waits_twice(redis_url: str) -> None:
    """Where Python's socket has a timeout of its own, it waits until it can be read before it is."""
    with _client(redis_url) as client:
        client.ping()
        connection = client.connection_pool.get_connection()
        assert connection._sock.gettimeout() is None
        with pytest.raises(redis.TimeoutError):
            connection.read_response(timeout=0.01)  # as subscriptions do
        connection.connect()
        assert connection._sock.gettimeout() is None
        client.connection_pool.release(connection)


def test_a_socket_of_this_machine_too(tmp_path: Path) -> None:
    path = f"{tmp_path}/s"
    with ConfiguredServer(unixsocket=path), _client(f"unix://{path}", timeout_s=0.25) as client:
        assert client.ping()
        with pytest.raises(redis.TimeoutError):
            client.blpop("nothing", timeout=60)


def test_a_connection_is_looked_at_only_when_it_was_idle_for_a_while(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Any] = []
    with _client(redis_url, num_retries=1) as client:
        client.ping()
        (connection,) = client.connection_pool._available_connections
        look = connection.can_read
        monkeypatch.setattr(connection, "can_read", lambda *timeout: looks.append(timeout) or look(*timeout))
        client.ping()
        assert looks == []
        monkeypatch.setattr(connection_pool, "FRESH_S", 0.0)
        client.ping()
        client.ping()
        assert len(looks) == 1


def test_one_that_redis_has_closed_since_costs_no_command(redis_url: str, connection: redis.Redis) -> None:
    with connect(ClientSettings(redis_url=redis_url), Retry(NoBackoff(), 1)) as client:
        client.ping()
        _kill_others(connection)
        assert client.ping(), "it is tried again"


def test_where_nothing_is_tried_again_each_is_looked_at(redis_url: str, connection: redis.Redis) -> None:
    with _client(redis_url) as client:
        client.ping()
        _kill_others(connection)
        assert client.ping()


def test_one_that_was_given_back_with_an_error_is_looked_at(redis_url: str) -> None:
    """Its answer may still come, which would be taken for that of the next command."""
    with _client(redis_url, num_retries=1) as client:
        pool = client.connection_pool
        with pytest.raises(KeyboardInterrupt):
            _ask_and_be_interrupted(pool)
        wait_for_answer(pool)
        assert client.echo("b") == b"b"


def _ask_and_be_interrupted(pool: Any) -> None:
    connection = pool.get_connection()
    try:
        connection.send_command("ECHO", "a")
        raise KeyboardInterrupt
    finally:
        pool.release(connection)


def wait_for_answer(pool: Any) -> None:
    (connection,) = pool._available_connections
    assert connection.can_read(timeout=60)
