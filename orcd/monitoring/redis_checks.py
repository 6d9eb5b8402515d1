"""Whether a Redis is one that orcd can rely on: reached, new enough, set up to lose nothing, and with enough rights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import redis
from redis.exceptions import NoPermissionError

from orcd.monitoring.check import Check
from orcd.settings import ClientSettings
from orcd.store import schema
from orcd.store.redis_address import RedisAddress
from orcd.store.redis_connection import OLDEST_VERSION, connect, explain, oldest_version

ACL_ADVICE = "give the user the rights in docs/redis.acl, and rename no command"
SCRIPT = "return redis.call('EXISTS', KEYS[1])"
PROBE = "orcd:doctor"
"""A key and a channel that checks write to; the key is gone after a second."""


class RedisChecks:
    """The checks of the Redis in ``settings``; each may be made without the others' having gone well."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._address = RedisAddress.parse(settings.redis_url)
        self._prefix = settings.key_prefix

    def __iter__(self) -> Iterator[Check]:
        with connect(self._settings) as connection:
            reached = self._reached(connection)
            yield reached
            if reached.outcome == "problem":
                return
            info = self._info(connection)
            if info is None:
                found = "this user may not ask for INFO: version, memory policy and persistence are unknown"
                yield Check("redis server", "warning", found, "run this as another user to look at those")
            else:
                yield from server_checks(info)
            yield self._rights(connection)
            yield self._workers(connection)

    def _reached(self, connection: Any) -> Check:
        try:
            connection.ping()
        except redis.RedisError as error:
            found, _, advice = explain(error, self._address).message.partition("; ")
            return Check("redis", "problem", found, advice or "set ORCD_REDIS_URL")
        return Check("redis", "good", f"answers at {self._address}")

    def _info(self, connection: Any) -> Mapping[str, Any] | None:
        try:
            found: Mapping[str, Any] = connection.info()
        except redis.RedisError:
            return None
        return found

    def _rights(self, connection: Any) -> Check:
        """A command of each kind that clients and workers use."""
        key = self._prefix + PROBE
        probes: dict[str, Callable[[], Any]] = {
            "scripts": lambda: connection.evalsha(connection.script_load(SCRIPT), 1, key),
            "writing": lambda: connection.set(key, "1", ex=1),
            "queues": lambda: connection.llen(f"{self._prefix}orcd"),
            "streams": lambda: connection.xrange(self._prefix + schema.DEAD, count=1),
            "publishing": lambda: connection.publish(key, ""),
            "scanning": lambda: connection.scan(count=1),
        }
        refused = []
        for name, probe in probes.items():
            try:
                probe()
            except redis.RedisError as error:
                if not _is_not_allowed(error):
                    found, _, advice = explain(error, self._address).message.partition("; ")
                    return Check("redis rights", "problem", found, advice or "see Redis's log")
                refused.append(name)
        if refused:
            return Check("redis rights", "problem", f"refused: {', '.join(refused)}", ACL_ADVICE)
        return Check("redis rights", "good", ", ".join(probes))

    def _workers(self, connection: Any) -> Check:
        try:
            count = connection.zcard(self._prefix + schema.WORKERS)
        except redis.RedisError as error:
            return Check("workers", "problem", explain(error, self._address).message, ACL_ADVICE)
        if count:
            return Check("workers", "good", f"{count} alive: orcd workers lists them")
        return Check("workers", "warning", "none is alive, so jobs wait", "start one: orcd worker --model M.gguf")


def _is_not_allowed(error: redis.RedisError) -> bool:
    """Whether the user lacks a right, or the server has a command under another name."""
    text = str(error)
    return isinstance(error, NoPermissionError) or "NOPERM" in text or "unknown command" in text


def server_checks(info: Mapping[str, Any]) -> Iterator[Check]:
    """What a server says of itself."""
    version = str(info.get("redis_version", ""))
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if not numbers:
        advice = f"use Redis {oldest_version()} or newer, or what is compatible"
        yield Check("redis version", "warning", version or "it says none", advice)
    elif numbers < OLDEST_VERSION:
        yield Check("redis version", "problem", version, f"install Redis {oldest_version()} or newer")
    else:
        names = [f"{name} {info[key]}" for name in ("Valkey", "Redict") if (key := f"{name.lower()}_version") in info]
        yield Check("redis version", "good", "".join(f"{name}, compatible with " for name in names) + version)
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy == "noeviction":
        limit = info.get("maxmemory")
        shown = f"{limit >> 20} MiB" if isinstance(limit, int) else limit
        yield Check("redis memory", "good", f"noeviction, {f'at most {shown}' if limit else 'no limit'}")
    else:
        yield Check("redis memory", "problem", f"maxmemory-policy is {policy}: it may delete jobs",
                    "set maxmemory-policy noeviction")  # fmt: skip
    if info.get("aof_enabled"):
        yield Check("redis persistence", "good", "append-only file")
    else:
        yield Check("redis persistence", "warning", "no append-only file: what was written last is lost when it dies",
                    "set appendonly yes")  # fmt: skip
    if info.get("role") not in (None, "master"):
        yield Check("redis role", "problem", f"it is a {info['role']}", "set ORCD_REDIS_URL to the master")
