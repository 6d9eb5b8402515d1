"""Jobs of the gateway's callers: their ids say whose they are, so that nobody reads another's."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from orcd.errors import InvalidRequest, ModelNotServed, QueueFull
from orcd.gateway.api_error import ApiError, model_not_served
from orcd.gateway.api_keys import ID_DIGITS, TENANT_IS_KEY, ApiKey, is_made_by, new_id
from orcd.gateway.endpoint import Call
from orcd.request import Request, decode
from orcd.result import Result, fold
from orcd.status import damaged
from orcd.store import schema
from orcd.store.submission import trace_parent
from orcd.store.token_log import read_events, usable


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a response: the fields of its body that it repeats, when it was created, and what came of it."""

    body: Mapping[str, Any]
    created_s: int
    result: Result


def job_id_for(key: ApiKey, idempotency_key: str | None = None, index: int = 0) -> str:
    """An id that only this API key may use: one that nobody can guess, or the same for the same ``idempotency_key``.

    ``index`` is the job's among those of one call.
    """
    if idempotency_key is None:
        return new_id("", key.tag)
    text = idempotency_key.encode("utf-8", "surrogateescape")
    place = b" orcd:idempotency_key" + (b"[%d]:" % index if index else b":")
    return key.tag + hashlib.sha256(key.digest + place + text).hexdigest()[:ID_DIGITS]


def check_owner(call: Call, job_id: str) -> None:
    """Raises `ApiError` 404 if the job cannot be the caller's."""
    if not is_made_by(call.key, job_id, ""):
        raise not_found()


def not_found() -> ApiError:
    """The error for what is not there, or another caller's."""
    return ApiError(404, "there is no such response, or it is no longer kept", code="not_found")


async def submit(call: Call, request: Request, *, in_background: bool = False) -> str:
    """Queue a job of the caller; returns its id. With the header Idempotency-Key the same call makes the same job.

    With the header traceparent the job's spans belong to the caller's.

    Raises `InvalidRequest` if it names a tenant although it has a key, which is its tenant; and `ApiError` 404 if no
    worker has served its model in the last minute: only what is ``in_background`` may wait for one.
    """
    job_id = job_id_for(call.key, call.request.headers.get("idempotency-key"))
    fields = _fields(call, request)
    try:
        return await call.gateway.client.submit(job_id=job_id, fail_fast=not in_background, **fields)
    except ModelNotServed:
        raise model_not_served() from None


async def submit_all(call: Call, requests: Sequence[Request]) -> list[str]:
    """`submit` for the jobs of one call.

    Where the queue has no place for all, none is left there, but for those that the same call would find again.
    """
    first = await submit(call, requests[0])  # alone: what is wrong with all is told as of one
    if len(requests) == 1:
        return [first]
    key = call.request.headers.get("idempotency-key")
    job_ids = [job_id_for(call.key, key, index) for index in range(1, len(requests))]
    try:
        await call.gateway.client.submit_many([_fields(call, each) for each in requests[1:]], job_ids, fail_fast=True)
    except QueueFull as error:
        if key is None:
            await cancel(call, [first, *error.stored])
        raise QueueFull("too many jobs wait for one of each prompt; send the call again later") from None
    return [first, *job_ids]


async def cancel(call: Call, job_ids: Sequence[str]) -> None:
    """Cancel jobs of the caller; those that have ended stay as they are."""
    await asyncio.gather(*map(call.gateway.client.cancel, job_ids))


def _fields(call: Call, request: Request) -> dict[str, Any]:
    """The fields of a job of the caller. Raises `InvalidRequest` as `submit` does."""
    if call.key.tag:
        if request.tenant is not None:
            raise InvalidRequest(TENANT_IS_KEY)
        request = msgspec.structs.replace(request, tenant=call.key.tag)
    trace = trace_parent(call.request.headers.get("traceparent"))
    return msgspec.structs.asdict(request) | ({"traceparent": trace} if trace else {})


async def keep(call: Call, job_id: str, body: Mapping[str, Any]) -> None:
    """Keep these fields of a job's body with it."""
    await call.gateway.scripts["annotate"]([], [job_id, msgspec.json.encode(body)])


async def read_kept(call: Call, job_id: str) -> Kept:
    """What is kept of a job that is the caller's. Raises `ApiError` 404, or `LogDamaged`."""
    prefix = call.gateway.settings.key_prefix
    try:
        status = await call.gateway.client.status(job_id)  # ends it if it is overdue
    except InvalidRequest:
        raise not_found() from None
    async with call.gateway.redis.pipeline(transaction=False) as pipeline:
        pipeline.hmget(schema.job_key(job_id, prefix), "state", "end", "note")
        pipeline.xrange(schema.log_key(job_id, prefix))
        record, entries = map(usable, await pipeline.execute(raise_on_error=False))
    state, end, note = record or (None, None, None)
    events = read_events(job_id, state, end, entries)
    result = fold(job_id, events) if events else Result(job_id, status.state)
    return Kept(
        _kept_body(job_id, note), status.created_ms // 1000, msgspec.structs.replace(result, state=status.state)
    )


def _kept_body(job_id: str, note: bytes | None) -> dict[str, Any]:
    try:
        return msgspec.json.decode(note or b"{}", type=dict[str, Any])
    except (ValueError, RecursionError, msgspec.MsgspecError):
        raise damaged(job_id) from None


async def read_request(call: Call, job_id: str) -> Request | None:
    """What a job that is the caller's was asked for; None if that is not there, or damaged."""
    key = schema.job_key(job_id, call.gateway.settings.key_prefix)
    text = await call.gateway.redis.hget(key, "request")
    try:
        return decode(text) if isinstance(text, bytes) else None
    except InvalidRequest:
        return None


async def delete(call: Call, job_id: str) -> bool:
    """Delete a job that is the caller's; False if it is not there."""
    return bool(await call.gateway.scripts["delete"]([], [job_id]))
