"""Clients reach a Redis of every kind, and say in one line what is wrong with one that is not as it should be."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

from orcd.async_client import AsyncClient
from orcd.client import Client
from orcd.errors import InvalidRequest, RedisUnavailable
from orcd.settings import ClientSettings
from orcd.store import redis_connection
from orcd.store.commands import connection_pool
from orcd.store.redis_address import RedisAddress
from orcd.store.redis_connection import (
    UnsuitableRedisError,
    connect,
    connect_async,
    explain,
    is_refusal,
    make_pool,
    redis_errors,
)
from tasks.local import redis_server
from tasks.local.redis_server import RedisServer
from tests.conftest import wait_until
from tests.orcd.redis_servers import MASTER, Certificates, ConfiguredServer, sentinels, tls_server

SETTINGS = ClientSettings(redis_url="redis://:secret@redis:6379/0")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            redis.ConnectionError("secret"),
            "cannot reach Redis at redis://:**@redis:6379/0; start it or set ORCD_REDIS_URL",
        ),
        (
            redis.TimeoutError("secret"),
            "cannot reach Redis at redis://:**@redis:6379/0; start it or set ORCD_REDIS_URL",
        ),
        (
            redis.AuthenticationError("secret"),
            "Redis at redis://:**@redis:6379/0 refuses the password; set ORCD_REDIS_URL",
        ),
        (redis.ResponseError("ERR 'secret'"), "Redis at redis://:**@redis:6379/0 refused a command: ResponseError"),
        (redis.ReadOnlyError("secret"), "Redis at redis://:**@redis:6379/0 refused a command: ReadOnlyError"),
        (
            redis.ResponseError("-OOM command not allowed when used memory > 'maxmemory'."),
            "Redis at redis://:**@redis:6379/0 is full; raise its maxmemory",
        ),
        (
            redis.ConnectionError("max number of clients reached"),
            "Redis at redis://:**@redis:6379/0 has as many clients as it may have; raise its maxclients",
        ),
        (
            redis.ResponseError("DB index is out of range"),
            "Redis at redis://:**@redis:6379/0 has no database 0; set ORCD_REDIS_URL",
        ),
        (
            redis.ConnectionError("Connection closed by server."),
            "cannot reach Redis at redis://:**@redis:6379/0; start it or set ORCD_REDIS_URL (rediss:// if it has TLS)",
        ),
        (
            redis.InvalidResponse("secret"),
            "what answers at redis://:**@redis:6379/0 is no Redis; set ORCD_REDIS_URL",
        ),
        (
            redis.ResponseError("unknown command `HELLO`, with args beginning with: `3`, `secret`"),
            "Redis at redis://:**@redis:6379/0 does not know HELLO; use version 6.2 or newer, with no command renamed",
        ),
        (
            redis.ResponseError("Unknown Redis command called from script script: 7ae0187b, on @user_script:1."),
            "Redis at redis://:**@redis:6379/0 does not know a command; use version 6.2 or newer, "
            "with no command renamed",
        ),
        (UnsuitableRedisError("is no Redis"), "Redis at redis://:**@redis:6379/0 is no Redis"),
        (
            MasterNotFoundError("secret"),
            "no sentinel of redis://:**@redis:6379/0 answers and names a master that is up; "
            "start them or set ORCD_REDIS_URL",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_redis_becomes_one_line_without_secrets(error: redis.RedisError, words: str):
    with pytest.raises(RedisUnavailable) as caught, redis_errors(SETTINGS):
        raise error
    assert caught.value.message == words


def test_other_errors_pass_through():
    with pytest.raises(InvalidRequest), redis_errors(SETTINGS):
        raise InvalidRequest("mine")


def test_it_is_retriable():
    assert RedisUnavailable.retriable


def status_error(url: str) -> str:
    """What a client says when it asks for a job; both kinds of clients say the same."""

    async def ask() -> None:
        async with AsyncClient(url) as client:
            await client.status("a")

    with pytest.raises(RedisUnavailable) as of_async:
        asyncio.run(ask())
    with Client(url) as client, pytest.raises(RedisUnavailable) as caught:
        client.status("a")
    assert of_async.value.message == caught.value.message
    return caught.value.message


def is_reached(url: str) -> bool:
    """Whether both kinds of clients see what the other has submitted there."""

    async def ask(job_id: str) -> str:
        async with AsyncClient(url) as client:
            await client.status(job_id)
            return await client.submit(prompt="x")

    with Client(url) as client:
        return client.status(asyncio.run(ask(client.submit(prompt="x")))).state == "queued"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def tls_port(certificates: Certificates) -> Iterator[int]:
    """Where a server speaks TLS and wants a certificate."""
    port = redis_server.free_port()
    with tls_server(certificates, port):
        yield port


def test_tls_with_certificates_on_both_sides(tls_port: int, certificates: Certificates):
    certificate, key = certificates.client
    own = f"ssl_certfile={certificate}&ssl_keyfile={key}"
    authority = f"ssl_ca_certs={certificates.authority}"
    assert is_reached(f"rediss://127.0.0.1:{tls_port}/3?{authority}&{own}")
    assert is_reached(f"rediss://127.0.0.1:{tls_port}?ssl_cert_reqs=none&{own}")
    assert is_reached(f"rediss://localhost:{tls_port}?{authority}&ssl_check_hostname=false&{own}")


def test_what_is_wrong_with_tls_is_said(tls_port: int, certificates: Certificates):
    certificate, key = certificates.client
    own = f"ssl_certfile={certificate}&ssl_keyfile={key}"
    authority = f"ssl_ca_certs={certificates.authority}"
    for host, query, words in (
        ("127.0.0.1", own, "self-signed certificate in certificate chain"),
        ("localhost", f"{authority}&{own}", "Hostname mismatch"),
    ):
        error = status_error(f"rediss://:secret@{host}:{tls_port}/0?{query}")
        assert error.startswith(f"no TLS connection with Redis at rediss://:**@{host}:{tls_port}/0 ({words}")
    assert "cannot reach Redis" in status_error(f"redis://127.0.0.1:{tls_port}/0")
    # The server may have left before the reason is read.
    refusal = pytest.raises(RedisUnavailable, match=r"certificate required|cannot reach")
    with Client(f"rediss://127.0.0.1:{tls_port}/0?{authority}") as client, refusal:
        client.status("a")


def test_a_server_without_tls_is_told_from_one_that_is_away() -> None:
    with ConfiguredServer() as server:
        address = RedisAddress.parse(server.url.replace("redis://", "rediss://"))
        pool = make_pool(address, retry=Retry(NoBackoff(), 0), socket_timeout=0.5)
        with redis.Redis.from_pool(pool) as asked, pytest.raises(redis.TimeoutError) as caught:
            asked.ping()
    assert explain(caught.value, address).message.endswith("or set ORCD_REDIS_URL (redis:// if it has no TLS)")


def test_a_socket_of_this_machine(tmp_path: Path):
    with ConfiguredServer(unixsocket=f"{tmp_path}/s") as server:
        assert is_reached(f"unix://{tmp_path}/s?db=2")
        with redis.Redis(port=server.port, db=2) as connection:
            assert connection.dbsize()
    assert "cannot reach Redis at unix:///nowhere/s?db=0" in status_error("unix:///nowhere/s")


def test_the_master_that_sentinels_name(tmp_path: Path):
    with ConfiguredServer() as master, ConfiguredServer(replicaof=f"127.0.0.1 {master.port}") as replica:
        with sentinels(master.port, tmp_path) as ports:
            hosts = ",".join(f"127.0.0.1:{port}" for port in [1, *ports])  # one of them is away
            assert is_reached(f"redis+sentinel://{hosts}/{MASTER}/2")
            assert "answers and names a master that is up" in status_error(f"redis+sentinel://{hosts}/other")
            assert "is a sentinel; use redis+sentinel://" in status_error(f"redis://127.0.0.1:{ports[0]}")
            with Client(f"redis+sentinel://{hosts}/{MASTER}/2") as client:
                client.submit(prompt="x")
        with redis.Redis(port=replica.port, db=2) as connection:
            assert connection.info("replication")["role"] == "slave"


def test_closing_a_client_closes_its_connections_to_sentinels(tmp_path: Path):
    with (
        ConfiguredServer() as master,
        ConfiguredServer(replicaof=f"127.0.0.1 {master.port}"),
        sentinels(master.port, tmp_path) as (port, *_),
        redis.Redis(port=port) as sentinel,
    ):
        assert is_reached(f"redis+sentinel://127.0.0.1:{port}/{MASTER}")
        # The others are sentinels, which say their names.
        wait_until(lambda: len([client for client in sentinel.client_list() if not client["name"]]) == 1)


def test_a_cluster_is_refused_in_words():
    with ConfiguredServer(cluster_enabled="yes") as server:
        words = "is a Redis Cluster, which orcd cannot use; use one server, or one with replicas"
        assert status_error(server.url) == f"Redis at {server.url} {words}"


def test_a_redis_that_is_too_old_is_refused(redis_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(redis_connection, "OLDEST_VERSION", (99, 5))
    assert "; orcd needs 99.5 or newer" in status_error(redis_url)


@pytest.mark.parametrize(("renamed", "what"), [("EVALSHA", "EVALSHA"), ("TIME", "a command")])
def test_a_redis_that_lacks_a_command_is_told_of(renamed: str, what: str) -> None:
    """It is not the job that is damaged where a script lacks one."""
    with ConfiguredServer(rename_command=f"{renamed} other") as server, Client(server.url) as client:
        with pytest.raises(RedisUnavailable) as caught:
            client.submit(prompt="x", job_id="a")
        words = f"does not know {what}; use version 6.2 or newer, with no command renamed"
        assert caught.value.message == f"Redis at {server.url} {words}"


def test_a_client_leaves_a_server_that_became_a_replica(redis_server: RedisServer):
    """Its name leads to the new master by then."""
    with connect(ClientSettings(redis_url=redis_server.url)) as client, redis.Redis.from_url(redis_server.url) as other:
        before = client.client_id()
        other.replicaof("127.0.0.1", 1)
        with pytest.raises(redis.ReadOnlyError):
            client.set("a", 1)
        assert client.client_id() != before


@pytest.mark.parametrize(
    "error",
    [
        redis.ConnectionError(),
        redis.TimeoutError(),
        redis.BusyLoadingError(),
        redis.OutOfMemoryError(),
        redis.ReadOnlyError(),
        redis.ResponseError("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to"),
        redis.ResponseError("NOREPLICAS Not enough good replicas to write."),
    ],
    ids=repr,
)
def test_waiting_helps_where_redis_is_away_or_can_do_nothing_at_the_moment(error: redis.RedisError):
    assert not is_refusal(error)


@pytest.mark.parametrize(
    "error", [redis.AuthenticationError(), UnsuitableRedisError(), redis.ResponseError()], ids=repr
)
def test_waiting_does_not_help_where_redis_has_said_no(error: redis.RedisError):
    assert is_refusal(error)


def test_after_many_calls_at_once_few_connections_are_kept(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 300 streams there were 303."""
    monkeypatch.setattr(connection_pool, "MAX_IDLE", 4)
    with connect(ClientSettings(redis_url=redis_url)) as client:
        borrowed = [client.connection_pool.get_connection() for _ in range(20)]
        for connection in borrowed:
            client.connection_pool.release(connection)
        assert [connection.is_connected for connection in borrowed] == [False] * 16 + [True] * 4
        assert client.ping()


def test_on_an_event_loop_few_are_kept_too(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_connection, "MAX_IDLE", 4)

    async def call_often() -> None:
        async with connect_async(ClientSettings(redis_url=redis_url)) as client:
            borrowed = [await client.connection_pool.get_connection() for _ in range(20)]
            for connection in borrowed:
                await client.connection_pool.release(connection)
            assert [connection.is_connected for connection in borrowed] == [False] * 16 + [True] * 4
            assert await client.ping()

    asyncio.run(call_often())
