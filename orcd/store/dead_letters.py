"""Messages that no worker could read, and those of other applications: `Receiver.dead_letter` puts them here.

They are kept for people to look at. The stream's ids are those of the dead letters; they say when each came here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from orcd.errors import InvalidRequest
from orcd.store import schema
from orcd.store.commands.redis_script import RedisScript

DEAD_LETTER_BYTES = 64 * 1024
"""As much of a message that cannot be read is kept; one of another application is kept whole."""
MAX_DEAD_LETTERS = 1000
"""When there are more, the oldest go."""
DEAD_LETTER_TTL_S = 7 * 24 * 3600
"""So long they are kept, counted from the last one that came."""
PAGE = 100


class DeadLetter(msgspec.Struct, frozen=True):
    """What may be shown of a message: nothing of what it says but ids and the name of its task.

    ``at_ms`` is in Unix milliseconds of the Redis clock, ``list_name`` where it was taken from, ``message_id`` its
    task's id, if it has one. ``num_kept_bytes`` of its ``num_bytes`` are there.
    """

    id: str
    at_ms: int
    list_name: str
    reason: str
    num_bytes: int
    num_kept_bytes: int
    message_id: str = ""

    @classmethod
    def read(cls, entry_id: bytes, fields: Mapping[bytes, bytes]) -> DeadLetter:
        """From an entry of the stream."""

        def text(name: bytes) -> str:
            return fields.get(name, b"").decode(errors="replace")

        number = fields.get(b"num_bytes", b"")
        return cls(
            id=entry_id.decode(),
            at_ms=int(entry_id.partition(b"-")[0]),
            list_name=text(b"list"),
            reason=text(b"reason"),
            num_bytes=int(number) if number.isdigit() else 0,
            num_kept_bytes=len(fields.get(b"text", b"")),
            message_id=text(b"id"),
        )


class DeadLetters:
    """The dead letters in one Redis. Every method may raise `redis.RedisError`."""

    def __init__(self, connection: Any, key_prefix: str = "") -> None:
        self._redis = connection
        self._key_prefix = key_prefix
        self._key = key_prefix + schema.DEAD
        self._retry_script = RedisScript(connection, schema.celery_script("retry"))

    def __iter__(self) -> Iterator[DeadLetter]:
        """All of them, the oldest first."""
        after = "-"
        while entries := self._redis.xrange(self._key, after, "+", count=PAGE):
            for entry_id, fields in entries:
                yield DeadLetter.read(entry_id, fields)
            after = f"({entries[-1][0].decode()}"

    def get(self, letter_id: str) -> tuple[DeadLetter, bytes]:
        """One of them, and what was kept of its bytes. Raises `InvalidRequest` if there is none of this id."""
        _check_id(letter_id)
        entries = self._redis.xrange(self._key, letter_id, letter_id)
        if not entries:
            raise _unknown(letter_id)
        ((entry_id, fields),) = entries
        return DeadLetter.read(entry_id, fields), fields.get(b"text", b"")

    def retry(self, letter_id: str, queue: str = "") -> str:
        """Send the message again, byte for byte, to ``queue`` or to where it came from, and return that list's name.

        Raises `InvalidRequest` if there is none of this id, or if not all of it was kept.
        """
        _check_id(letter_id)
        answer = self._retry_script([self._key], [letter_id, queue and self._key_prefix + queue])
        if answer is None:
            raise _unknown(letter_id)
        if answer == b"":
            raise InvalidRequest(f"dead letter {letter_id}: only the beginning of the message was kept; drop it")
        return str(answer.decode(errors="replace"))

    def drop(self, letter_id: str) -> None:
        """Delete one of them. Raises `InvalidRequest` if there is none of this id."""
        _check_id(letter_id)
        if not self._redis.xdel(self._key, letter_id):
            raise _unknown(letter_id)


def _check_id(letter_id: str) -> None:
    if not re.fullmatch(r"[0-9]{1,15}-[0-9]{1,15}", letter_id):
        raise InvalidRequest(f"{letter_id!r} is no id of a dead letter; orcd dead list shows them")


def _unknown(letter_id: str) -> InvalidRequest:
    return InvalidRequest(f"there is no dead letter {letter_id}; orcd dead list shows those there are")
