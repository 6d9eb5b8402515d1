"""What is said of a Redis, and what to do about it."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from orcd.monitoring.redis_checks import RedisChecks, server_checks
from orcd.monitoring.worker_registry import WorkerRegistry
from orcd.settings import ClientSettings
from orcd.store.redis_address import RedisAddress
from tasks.local.redis_server import RedisServer

INFO: dict[str, Any] = {
    "redis_version": "7.4.1",
    "maxmemory_policy": "noeviction",
    "maxmemory": 1 << 30,
    "aof_enabled": 1,
    "role": "master",
}


def outcomes(url: str) -> dict[str, str]:
    return {check.name: check.outcome for check in RedisChecks(ClientSettings(redis_url=url))}


def test_a_redis_that_is_there_is_looked_at_in_every_way(redis_url: str, connection: redis.Redis) -> None:
    found = {check.name: check for check in RedisChecks(ClientSettings(redis_url=redis_url))}
    assert set(found) == {"redis", "redis version", "redis memory", "redis persistence", "redis rights", "workers"}
    assert found["redis rights"].found == "scripts, writing, queues, streams, publishing, scanning"
    assert found["workers"].outcome == "warning"
    WorkerRegistry(connection).beat("w", {"state": "ready"})
    assert outcomes(redis_url)["workers"] == "good"


def test_a_redis_that_is_away_is_the_only_problem() -> None:
    (check,) = RedisChecks(ClientSettings(redis_url="redis://:secret@127.0.0.1:1/0"))
    assert (check.outcome, check.found) == ("problem", "cannot reach Redis at redis://:**@127.0.0.1:1/0")
    assert check.advice == "start it or set ORCD_REDIS_URL"


def test_rights_that_are_missing_are_named(redis_url: str, connection: redis.Redis) -> None:
    connection.acl_setuser("poor", enabled=True, passwords=["+pass"], keys=["orcd*"], channels=["orcd:*"],
                           commands=["+ping", "+set", "+llen", "+publish", "+zcard"])  # fmt: skip
    try:
        address = redis_url.replace("redis://", "redis://poor:pass@")
        found = {check.name: check for check in RedisChecks(ClientSettings(redis_url=address))}
    finally:
        connection.acl_deluser("poor")
    assert found["redis server"].outcome == "warning"
    rights = found["redis rights"]
    assert (rights.outcome, rights.found) == ("problem", "refused: scripts, streams, scanning")
    assert "redis.acl" in rights.advice


def test_a_redis_that_is_full_or_read_only_lacks_no_right(redis_url: str, connection: redis.Redis) -> None:
    address = RedisAddress.parse(redis_url)
    connection.config_set("maxmemory", 1)
    try:
        full = {check.name: check for check in RedisChecks(ClientSettings(redis_url=redis_url))}["redis rights"]
    finally:
        connection.config_set("maxmemory", 0)
    assert (full.outcome, full.found, full.advice) == ("problem", f"Redis at {address} is full", "raise its maxmemory")
    connection.replicaof("127.0.0.1", 1)
    try:
        read_only = {check.name: check for check in RedisChecks(ClientSettings(redis_url=redis_url))}["redis rights"]
    finally:
        connection.replicaof("NO", "ONE")
    assert (read_only.outcome, read_only.found) == (
        "problem",
        f"Redis at {address} refused a command: ReadOnlyError",
    )


class ServerWithoutScripts(RedisServer):
    """A server whose scripts are all sent whole, as some that others run."""

    def _command(self, port: int) -> list[str]:
        return [*super()._command(port), "--rename-command", "SCRIPT", ""]


def test_a_server_that_keeps_no_scripts_is_told_of() -> None:
    with ServerWithoutScripts() as server:
        rights = {check.name: check for check in RedisChecks(ClientSettings(redis_url=server.url))}["redis rights"]
    assert (rights.outcome, rights.found) == ("problem", "refused: scripts")
    assert rights.advice == "give the user the rights in docs/redis.acl, and rename no command"


def test_a_server_of_another_name_is_called_by_it() -> None:
    found = {check.name: check for check in server_checks(INFO | {"valkey_version": "9.1.2"})}["redis version"]
    assert (found.outcome, found.found) == ("good", f"Valkey 9.1.2, compatible with {INFO['redis_version']}")


@pytest.mark.parametrize(
    ("changed", "name", "outcome", "advice"),
    [
        ({"redis_version": "6.0.16"}, "redis version", "problem", "install Redis 6.2 or newer"),
        ({"maxmemory_policy": "allkeys-lru"}, "redis memory", "problem", "set maxmemory-policy noeviction"),
        ({"redis_version": "unstable"}, "redis version", "warning", "use Redis 6.2 or newer, or what is compatible"),
        ({"aof_enabled": 0}, "redis persistence", "warning", "set appendonly yes"),
        ({"role": "slave"}, "redis role", "problem", "set ORCD_REDIS_URL to the master"),
    ],
)
def test_a_server_that_may_lose_jobs_is_told_of(changed: dict[str, Any], name: str, outcome: str, advice: str) -> None:
    assert {check.outcome for check in server_checks(INFO)} == {"good"}
    [check] = [check for check in server_checks(INFO | changed) if check.name == name]
    assert (check.outcome, check.advice) == (outcome, advice)


def test_a_server_that_says_its_memory_in_words_or_nothing_is_no_fault() -> None:
    found = {check.name: check.found for check in server_checks(INFO | {"maxmemory": "5gb"})}
    assert found["redis memory"] == "noeviction, at most 5gb"
    assert {check.outcome for check in server_checks({})} == {"good", "warning"}
