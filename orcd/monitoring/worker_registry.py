"""The workers that are alive: what each says of itself, and how it is told to leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from orcd.status import WorkerStatus
from orcd.store import schema
from orcd.store.commands.redis_script import RedisScript

HEARTBEAT_TTL_S = 60
"""How long a worker that has gone silent counts as alive."""

Farewell = Literal["drain", "stop"]
"""How a worker leaves: it finishes what it can in its time to drain, or hands back at once what it has."""


class WorkerRegistry:
    """The heartbeats of workers in one Redis. Thread-safe. Every method may raise `redis.RedisError`."""

    def __init__(self, connection: Any, key_prefix: str = "") -> None:
        self._redis = connection
        self._key_prefix = key_prefix
        names = ("heartbeat", "workers", "tell_worker")
        self._scripts = {name: RedisScript(connection, schema.script(name, key_prefix)) for name in names}

    def beat(self, name: str, heartbeat: Mapping[str, str | int | float]) -> None:
        """Note that a worker is alive, with the fields of `WorkerStatus` that it tells of itself."""
        fields = [word for pair in heartbeat.items() for word in pair]
        self._scripts["heartbeat"]([], [name, HEARTBEAT_TTL_S, *fields])

    def remove(self, name: str) -> None:
        """Take a worker off the list: it has left."""
        self._redis.zrem(self._key_prefix + schema.WORKERS, name)
        self._redis.delete(schema.worker_key(name, self._key_prefix))

    def workers(self) -> list[WorkerStatus]:
        """The workers that are alive, by name."""
        return WorkerStatus.read_all(self._scripts["workers"]([], []))

    def tell(self, name: str, farewell: Farewell) -> bool:
        """Tell a worker to leave; False if there is none of that name.

        A worker that has just lost its connection does not hear it, so tell it until it is gone.
        """
        return bool(self._scripts["tell_worker"]([], [name, farewell]))
