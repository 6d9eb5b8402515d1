"""Finds ids that more than one line has, in eight bytes a line."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Set

from orcd.batch.place import Place

_NUM_BUCKETS = 256


class CallerIds:
    """Is told the ids of all lines.

    Two are taken for one if 64 bits of their SHA-256 are equal: for a million ids the odds are one to 37 million.
    """

    def __init__(self) -> None:
        self._buckets = [array("Q") for _ in range(_NUM_BUCKETS)]

    def add(self, caller_id: str | int) -> None:
        """The id of one more line."""
        digest = _digest(caller_id)
        self._buckets[digest % _NUM_BUCKETS].append(digest)

    def repeated(self) -> Set[int]:
        """Digests of the ids that were added more than once."""
        repeated: set[int] = set()
        for bucket in self._buckets:
            seen: set[int] = set()
            for digest in bucket:
                (repeated if digest in seen else seen).add(digest)
        return repeated


class FirstPlaces:
    """Goes through the lines once more, in their order, and knows where each of the ``repeated`` ids came first."""

    def __init__(self, repeated: Set[int]) -> None:
        self._repeated = repeated
        self._places: dict[int, Place] = {}

    def earlier(self, caller_id: str | int, place: Place) -> Place | None:
        """The line before ``place`` that has its id already, if there is one."""
        digest = _digest(caller_id) if self._repeated else 0
        if digest not in self._repeated:
            return None
        first = self._places.setdefault(digest, place)
        return None if first == place else first


def _digest(caller_id: str | int) -> int:
    return int.from_bytes(hashlib.sha256(str(caller_id).encode("utf-8", "surrogatepass")).digest()[:8])
