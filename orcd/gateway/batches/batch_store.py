"""Batches in Redis: a record each, and who runs it for as long as he renews his lease."""

from __future__ import annotations

from typing import Any

import msgspec
import redis.asyncio

from orcd.gateway.api_error import ApiError
from orcd.gateway.api_keys import ApiKey, is_made_by
from orcd.store import schema

LEASE_MS = 10_000
KIND = "batch_"
"""What the ids of batches begin with."""

_encode = msgspec.json.encode


class RequestCounts(msgspec.Struct, frozen=True):
    """Lines of a batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0


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


_batch = msgspec.json.Decoder(BatchObject)


class BatchRecord(msgspec.Struct, frozen=True):
    """A batch with what its runner must know: the tag of the key that made it, and the models that this may use."""

    batch: BatchObject
    tag: str
    models: list[str] | None
    is_cancelled: bool = False


class BatchStore:
    """The batches of all gateways. Every method may raise `redis.RedisError`."""

    def __init__(self, connection: redis.asyncio.Redis, prefix: str, ttl_s: int) -> None:
        """``ttl_s`` is how long a batch is kept after its end."""
        self._redis: Any = connection
        self._prefix = prefix
        self._ttl_s = ttl_s
        names = ("batch_create", "batch_adopt", "batch_save", "batch_cancel")
        self._scripts: dict[str, Any] = {
            name: connection.register_script(schema.script(name, prefix)) for name in names
        }

    async def create(self, record: BatchRecord) -> None:
        """Keep a new batch, for any gateway to run."""
        batch = record.batch
        life_s = batch.expires_at - batch.created_at + self._ttl_s
        arguments = [batch.id, _encode(batch), record.tag, _encode(record.models), batch.created_at, life_s]
        await self._scripts["batch_create"]([], arguments)

    async def find(self, key: ApiKey, batch_id: str) -> BatchObject:
        """The caller's batch. Raises `ApiError` 404."""
        if is_made_by(key, batch_id, KIND):
            fields = await self._redis.hgetall(self._key(batch_id))
            if b"batch" in fields:
                return _record(fields).batch
        raise ApiError(404, "there is no such batch", code="not_found", param="batch_id")

    async def list_all(self, key: ApiKey) -> list[BatchObject]:
        """The caller's batches, the newest first."""
        listed = schema.batches_of_key(key.tag, self._prefix)
        ids = [batch_id.decode() for batch_id in reversed(await self._redis.zrange(listed, 0, -1))]
        async with self._redis.pipeline(transaction=False) as pipeline:
            for batch_id in ids:
                pipeline.hget(self._key(batch_id), "batch")
            texts = await pipeline.execute()
        if gone := [batch_id for batch_id, text in zip(ids, texts, strict=True) if text is None]:
            await self._redis.zrem(listed, *gone)
        return [_batch.decode(text) for text in texts if text is not None]

    async def cancel(self, batch_id: str) -> bool:
        """Ask for a batch's cancellation; False if it has ended."""
        return bool(await self._scripts["batch_cancel"]([], [batch_id]))

    async def waiting(self) -> list[str]:
        """Ids of batches that nobody runs."""
        return [batch_id.decode() for batch_id in await self._scripts["batch_adopt"]([], [LEASE_MS, "", ""])]

    async def peek(self, batch_id: str) -> BatchRecord | None:
        """A batch as it stands; None if it is gone."""
        fields = await self._redis.hgetall(self._key(batch_id))
        return _record(fields) if b"batch" in fields else None

    async def adopt(self, batch_id: str, token: str) -> BatchRecord | None:
        """Become a batch's owner; None if somebody else is."""
        flat = await self._scripts["batch_adopt"]([], [LEASE_MS, token, batch_id])
        return _record(dict(zip(flat[::2], flat[1::2], strict=True))) if flat else None

    async def save(self, batch: BatchObject, token: str, *, ended: bool = False, returned: bool = False) -> int:
        """Write down how far a batch of ours has come, and keep it ours unless it has ``ended`` or is ``returned``.

        Returns 0 if it is not ours any more, 2 if it shall be cancelled, otherwise 1.
        """
        lease_ms = 0 if returned else LEASE_MS
        arguments = [batch.id, token, _encode(batch), lease_ms, self._ttl_s if ended else 0]
        return int(await self._scripts["batch_save"]([], arguments))

    def _key(self, batch_id: str) -> str:
        return schema.batch_key(batch_id, self._prefix)


def _record(fields: dict[bytes, bytes]) -> BatchRecord:
    return BatchRecord(
        _batch.decode(fields[b"batch"]),
        fields[b"tag"].decode(),
        msgspec.json.decode(fields[b"models"], type=list[str] | None),
        b"cancel" in fields,
    )
