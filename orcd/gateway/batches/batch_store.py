"""Batches in Redis: a record each, and who runs it for as long as he renews his lease."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
import redis.asyncio

from orcd.errors import LogDamaged
from orcd.gateway.api_error import ApiError
from orcd.gateway.api_keys import ApiKey, is_made_by
from orcd.store import schema
from orcd.store.commands.redis_script import AsyncRedisScript
from orcd.store.token_log import usable

LEASE_MS = 10_000
KIND = "batch_"
"""What the ids of batches begin with."""
ENDED = ("completed", "failed", "expired", "cancelled")
"""What the status of a batch may be that nobody runs any more."""

_encode = msgspec.json.encode


class RequestCounts(msgspec.Struct, frozen=True):
    """Lines of a batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class ExpiresAfter(msgspec.Struct, frozen=True):
    """How long a file is kept from its beginning on."""

    seconds: int
    anchor: str = "created_at"


class BatchObject(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as OpenAI's API describes it; times are Unix seconds."""

    id: str
    object: str = "batch"
    endpoint: str
    errors: dict[str, Any] | None = None
    input_file_id: str
    completion_window: str = "24h"
    status: str = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    usage: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


_batch = msgspec.json.Decoder(BatchObject)


class BatchRecord(msgspec.Struct, frozen=True):
    """A batch with what its runner must know: the tag of the key that made it, and the models that this may use."""

    batch: BatchObject
    tag: str
    models: list[str] | None
    is_cancelled: bool = False


class BatchStore:
    """The batches of all gateways. Every method may raise `redis.RedisError`.

    Those that give a batch raise `LogDamaged` where its record cannot be read.
    """

    def __init__(self, connection: redis.asyncio.Redis, prefix: str, ttl_s: int) -> None:
        """``ttl_s`` is how long a batch is kept after its end."""
        self._redis: Any = connection
        self._prefix = prefix
        self._ttl_s = ttl_s
        names = ("batch_create", "batch_adopt", "batch_save", "batch_cancel")
        self._scripts: dict[str, Any] = {
            name: AsyncRedisScript(connection, schema.script(name, prefix)) for name in names
        }

    async def create(self, record: BatchRecord) -> None:
        """Keep a new batch, for any gateway to run."""
        batch = record.batch
        life_s = batch.expires_at - batch.created_at + self._ttl_s
        arguments = [batch.id, _encode(batch), record.tag, _encode(record.models), batch.created_at, life_s]
        await self._scripts["batch_create"]([], arguments)

    async def find(self, key: ApiKey, batch_id: str) -> BatchObject:
        """The caller's batch. Raises `ApiError` 404."""
        record = await self.peek(batch_id) if is_made_by(key, batch_id, KIND) else None
        if record is not None:
            return record.batch
        raise ApiError(404, "there is no such batch", code="not_found", param="batch_id")

    async def list_all(self, key: ApiKey) -> list[BatchObject]:
        """The caller's batches, the newest first."""
        listed = schema.batches_of_key(key.tag, self._prefix)
        (answer,) = await self._answers([("zrange", listed, 0, -1)])
        members = list(reversed(answer or []))
        ids = [member.decode(errors="replace") for member in members]
        records = await self._answers([("hgetall", self._key(batch_id)) for batch_id in ids])
        if gone := [member for member, fields in zip(members, records, strict=True) if fields == {}]:
            await self._redis.zrem(listed, *gone)
        found: list[BatchObject] = []
        for batch_id, fields in zip(ids, records, strict=True):
            with suppress(LogDamaged):  # whoever asks for it is told
                found += [] if fields == {} else [_record(batch_id, fields).batch]
        return found

    async def cancel(self, batch_id: str) -> None:
        """Ask for a batch's cancellation; one that has ended stays as it is."""
        await self._scripts["batch_cancel"]([], [batch_id, int(time.time())])

    async def waiting(self) -> list[str]:
        """Ids of batches that nobody runs, those first that wait for longest."""
        return [batch_id.decode() for batch_id in await self._scripts["batch_adopt"]([], [LEASE_MS, "", ""])]

    async def drop(self, batch_id: str) -> None:
        """Take a batch that cannot be run off the list of those that nobody runs."""
        await self._redis.zrem(self._prefix + schema.BATCHES, batch_id)

    async def peek(self, batch_id: str) -> BatchRecord | None:
        """A batch as it stands; None if it is gone."""
        (fields,) = await self._answers([("hgetall", self._key(batch_id))])
        return None if fields == {} else _record(batch_id, fields)

    async def adopt(self, batch_id: str, token: str) -> BatchRecord | None:
        """Become a batch's owner; None if somebody else is."""
        flat = await self._scripts["batch_adopt"]([], [LEASE_MS, token, batch_id])
        return _record(batch_id, dict(zip(flat[::2], flat[1::2], strict=True))) if flat else None

    async def save(self, batch: BatchObject, token: str, *, ended: bool = False, returned: bool = False) -> int:
        """Write down how far a batch of ours has come, and keep it ours unless it has ``ended`` or is ``returned``.

        Returns 0 if it is not ours any more, 2 if it shall be cancelled, otherwise 1.
        """
        lease_ms = 0 if returned else LEASE_MS
        arguments = [batch.id, token, _encode(batch), lease_ms, self._ttl_s if ended else 0]
        return int(await self._scripts["batch_save"]([], arguments))

    async def _answers(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What these commands answer, None where a key is of another type."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for command, *arguments in commands:
                getattr(pipeline, command)(*arguments)
            return [usable(answer) for answer in await pipeline.execute(raise_on_error=False)]

    def _key(self, batch_id: str) -> str:
        return schema.batch_key(batch_id, self._prefix)


def _record(batch_id: str, fields: dict[bytes, bytes] | None) -> BatchRecord:
    """From the fields of a record, None where its key is of another type."""
    try:
        found = fields or {}
        batch, tag = _batch.decode(found[b"batch"]), found[b"tag"].decode()
        models = msgspec.json.decode(found[b"models"], type=list[str] | None)
        if b"cancel" in found and batch.status not in ENDED:  # its owner may not have heard of it yet
            batch = msgspec.structs.replace(batch, status="cancelling", cancelling_at=int(found[b"cancel"]))
    except (KeyError, ValueError, RecursionError, msgspec.MsgspecError):
        batch = None
    if batch is None or batch.id != batch_id:
        raise LogDamaged(f"batch {batch_id}: its record in Redis cannot be read any more; create it again")
    return BatchRecord(batch, tag, models, b"cancel" in found)
