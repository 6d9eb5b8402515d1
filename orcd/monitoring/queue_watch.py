"""The queues as one of the workers counts them again and again, a little at a time, for all that show them."""

from __future__ import annotations

from typing import Any

import msgspec

from orcd.monitoring.queue_tally import QueueTally
from orcd.status import QueueStatus, WorkerStatus
from orcd.store import schema
from orcd.store.commands.redis_script import RedisScript

LEASE_S = 15
"""Who counts has so long for each part; then another may."""
PAUSE_S = 5
"""Time between two counts."""
KEPT_S = 60


class QueueFigures(msgspec.Struct, frozen=True):
    """What a count has found: the queues by name, and how many dead letters there are."""

    queues: list[QueueStatus] = []
    dead_letters: int = 0


_figures = msgspec.json.Decoder(QueueFigures)


class QueueWatch:
    """A worker's part in that. A queue of any depth takes Redis a millisecond a call; a deep one takes many calls.

    Not thread-safe. Every method may raise `redis.RedisError`.
    """

    def __init__(self, connection: Any, name: str, key_prefix: str = "") -> None:
        self._redis = connection
        self._name = name
        self._prefix = key_prefix
        self._scripts = {
            script: RedisScript(connection, schema.script(script, key_prefix)) for script in ("queues", "workers")
        }
        self._tally: QueueTally | None = None

    @property
    def is_counting(self) -> bool:
        """Whether the next call goes on with a count."""
        return self._tally is not None

    def look(self) -> QueueFigures | None:
        """Count a part of what there is, or read what another worker has counted; None while there is nothing new."""
        lease = self._prefix + schema.COUNTING
        if self._tally is None:
            if not self._redis.set(lease, self._name, nx=True, ex=LEASE_S):
                return self._read()
            self._tally = QueueTally()
        tally = self._tally
        try:
            if tally.arguments:
                tally.add(self._scripts["queues"]([], tally.arguments))
                self._redis.expire(lease, LEASE_S)
                return None
            found = QueueFigures(
                tally.queues(WorkerStatus.read_all(self._scripts["workers"]([], []))),
                self._redis.xlen(self._prefix + schema.DEAD),
            )
            self._redis.set(self._prefix + schema.QUEUE_FIGURES, msgspec.json.encode(found), ex=KEPT_S)
            self._redis.expire(lease, PAUSE_S)
        except BaseException:
            self._tally = None
            raise
        self._tally = None
        return found

    def _read(self) -> QueueFigures | None:
        text = self._redis.get(self._prefix + schema.QUEUE_FIGURES)
        try:
            return _figures.decode(text or b"")
        except msgspec.MsgspecError:  # none yet, or of another version
            return None
