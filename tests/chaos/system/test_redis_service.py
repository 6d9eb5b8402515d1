from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.chaos.system.redis_service import RedisService


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
    size = service.log_size()
    connection.set("a", 2)
    service.kill()
    service.cut_log(size)
    service.start()
    assert connection.get("a") == b"1"


def test_a_failover_loses_nothing_and_the_old_server_writes_nothing(
    service: RedisService, connection: redis.Redis
) -> None:
    connection.set("a", 1)
    service.fail_over(service.start_replica(), connections_stay_s=0.0)
    assert connection.incr("a") == 2


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
