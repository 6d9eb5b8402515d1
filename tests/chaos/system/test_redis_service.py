from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tasks.local.redis_server import RedisServer
from tests.chaos.system import redis_service
from tests.chaos.system.redis_service import RedisService

NUM_KEYS = 10
SAVE_US = 50_000
"""For each key that a slow server writes, to a replica or into a new append-only file."""

ask = redis.Redis.info


def slow_server(*, appendonly: bool) -> RedisServer:
    """As on a busy machine: a replica has what this one holds half a second later, and so has an append-only file."""
    server = RedisServer(appendonly=appendonly)
    with redis.Redis.from_url(server.url) as connection:
        connection.config_set("rdb-key-save-delay", SAVE_US)
    return server


def late_info(connection: redis.Redis, *sections: str) -> Any:
    """As on a busy machine: when the answer of a replica comes, that has just got what its master holds."""
    answer = ask(connection, *sections)
    while ask(connection, "replication").get("master_link_status") == "down":
        time.sleep(0.001)
    return answer


@pytest.fixture
def service() -> Iterator[RedisService]:
    with RedisService({}) as service:
        yield service


@pytest.fixture
def connection(service: RedisService) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(service.url) as connection:
        yield connection


def test_what_was_acknowledged_outlives_a_kill(service: RedisService, connection: redis.Redis) -> None:
    connection.set("a", 1)
    service.kill()
    with pytest.raises(redis.ConnectionError):
        connection.get("a")
    service.start()
    assert connection.get("a") == b"1"


def test_a_cut_log_forgets_what_came_last(service: RedisService, connection: redis.Redis) -> None:
    connection.set("a", 1)
    end = service.log_end()
    connection.set("a", 2)
    service.kill()
    service.cut_log(end)
    service.start()
    assert connection.get("a") == b"1"


def test_a_log_that_was_written_anew_is_not_cut(service: RedisService, connection: redis.Redis) -> None:
    connection.set("a", 1)
    end = service.log_end()
    connection.bgrewriteaof()
    while connection.info("persistence")["aof_rewrite_in_progress"]:
        time.sleep(0.01)
    service.kill()
    with pytest.raises(AssertionError, match="written anew"):
        service.cut_log(end)


def test_a_failover_loses_nothing_and_the_old_server_writes_nothing(
    service: RedisService, connection: redis.Redis
) -> None:
    connection.set("a", 1)
    service.fail_over(service.start_replica(), connections_stay_s=0.0)
    assert connection.incr("a") == 2


def test_what_a_replica_holds_outlives_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_service, "RedisServer", slow_server)
    with RedisService({}) as service:
        with service.connection() as connection:
            connection.mset(dict.fromkeys(range(NUM_KEYS), "a"))
        monkeypatch.setattr(redis.Redis, "info", late_info)
        replica = service.start_replica()
    with replica:
        replica.kill()
        replica.start()
        with redis.Redis.from_url(replica.url) as copy:
            assert copy.dbsize() == NUM_KEYS


def test_a_lagging_replica_forgets_what_came_last(service: RedisService, connection: redis.Redis) -> None:
    connection.set("a", 1)
    replica = service.start_replica()
    connection.set("b", 1)
    service.promote_lagging(replica, lag_s=0.0)
    assert (connection.get("a"), connection.get("b")) == (b"1", b"1"), "known before it was promoted"
    with service.connection() as direct:
        assert direct.info("replication")["role"] == "master"


def test_a_disk_that_takes_no_snapshot_makes_redis_refuse(service: RedisService, connection: redis.Redis) -> None:
    with service.broken_snapshots(), pytest.raises(redis.ResponseError, match="MISCONF"):
        connection.set("a", 1)
    connection.set("a", 2)
