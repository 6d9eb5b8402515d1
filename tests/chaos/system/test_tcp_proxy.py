from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tasks.local.redis_server import RedisServer
from tests.chaos.system.tcp_proxy import TcpProxy

NO_RETRY = Retry(NoBackoff(), 0)


def port_of(server: RedisServer) -> int:
    return int(server.url.rpartition(":")[2].partition("/")[0])


@pytest.fixture
def proxy(shared_redis: RedisServer) -> Iterator[TcpProxy]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with TcpProxy(port, port_of(shared_redis)) as proxy:
        yield proxy


@pytest.fixture
def connection(proxy: TcpProxy) -> Iterator[redis.Redis]:
    with redis.Redis(port=proxy.port, retry=NO_RETRY, single_connection_client=True) as connection:
        yield connection


def test_bytes_go_both_ways(connection: redis.Redis) -> None:
    assert connection.echo("x" * 100_000) == b"x" * 100_000


def test_a_delay_slows_answers_down(proxy: TcpProxy, connection: redis.Redis) -> None:
    proxy.tell(delay_s=0.1)
    start = time.monotonic()
    connection.ping()
    assert time.monotonic() - start >= 0.2


def test_connections_are_cut_and_can_be_made_again(proxy: TcpProxy, connection: redis.Redis) -> None:
    connection.ping()
    proxy.tell(cut="all")
    with pytest.raises(redis.ConnectionError):
        connection.ping()
    assert connection.ping()


def test_nobody_gets_in_while_it_does_not_listen(proxy: TcpProxy) -> None:
    proxy.tell(listen=False)
    with pytest.raises(redis.ConnectionError), redis.Redis(port=proxy.port, retry=NO_RETRY) as connection:
        connection.ping()
    proxy.tell(listen=True)
    with redis.Redis(port=proxy.port) as connection:
        assert connection.ping()


def test_new_connections_go_elsewhere_and_old_ones_stay_until_they_are_cut(
    proxy: TcpProxy, connection: redis.Redis
) -> None:
    first = connection.info("server")["run_id"]
    with RedisServer() as other:
        proxy.tell(upstream=port_of(other))
        assert connection.info("server")["run_id"] == first
        with redis.Redis(port=proxy.port) as moved:
            assert moved.info("server")["run_id"] != first
            proxy.tell(cut="moved")
            assert moved.ping()
        with pytest.raises(redis.ConnectionError):
            connection.ping()
