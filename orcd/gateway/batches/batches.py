"""``/v1/batches``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from orcd.errors import InvalidRequest
from orcd.gateway.api_keys import new_id
from orcd.gateway.batches.batch_store import KIND, BatchObject, BatchRecord, ExpiresAfter
from orcd.gateway.batches.files import file_store, life_s
from orcd.gateway.batches.pages import page
from orcd.gateway.endpoint import Call, endpoint, json_response
from orcd.openai.endpoints import ENDPOINTS

URL = "/v1/batches"
WINDOW_S = 24 * 3600
MOST_LISTED = 100
_FIELDS = ("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after")


@endpoint
async def create(call: Call) -> Response:
    """Begin a batch."""
    body = await call.json()
    _check(body)
    output_life_s = life_s(body.get("output_expires_after"), "output_expires_after")
    file = await asyncio.to_thread(file_store(call).find, call.key, body["input_file_id"], "input_file_id")
    now = int(time.time())
    batch = BatchObject(
        id=new_id(KIND, call.key.tag),
        endpoint=body["endpoint"],
        input_file_id=file.id,
        created_at=now,
        expires_at=now + WINDOW_S,
        metadata=body.get("metadata"),
        output_expires_after=None if output_life_s is None else ExpiresAfter(output_life_s),
    )
    models = None if call.key.models is None else sorted(call.key.models)
    await call.gateway.batches.create(BatchRecord(batch, call.key.tag, models))
    return json_response(batch)


@endpoint
async def list_batches(call: Call) -> Response:
    """The caller's batches."""
    return json_response(page(call, await call.gateway.batches.list_all(call.key), limit=20, most=MOST_LISTED))


@endpoint
async def retrieve(call: Call) -> Response:
    """How far a batch has come."""
    return json_response(await call.gateway.batches.find(call.key, call.request.path_params["id"]))


@endpoint
async def cancel(call: Call) -> Response:
    """Cancel a batch; one that has ended stays as it is."""
    store = call.gateway.batches
    batch = await store.find(call.key, call.request.path_params["id"])
    await store.cancel(batch.id)
    return json_response(await store.find(call.key, batch.id))


ROUTES = (
    Route(URL, create, methods=["POST"]),
    Route(URL, list_batches, methods=["GET"]),
    Route(URL + "/{id}", retrieve, methods=["GET"]),
    Route(URL + "/{id}/cancel", cancel, methods=["POST"]),
)


def _check(body: Mapping[str, Any]) -> None:
    for name in body:
        if name not in _FIELDS:
            raise InvalidRequest(f"{name[:80]}: unknown field; known are {', '.join(_FIELDS)}")
    if not isinstance(body.get("input_file_id"), str):
        raise InvalidRequest("input_file_id: must be text")
    if body.get("endpoint") not in tuple(ENDPOINTS):
        raise InvalidRequest(f"endpoint: must be one of {', '.join(ENDPOINTS)}")
    if body.get("completion_window") != "24h":
        raise InvalidRequest("completion_window: must be 24h")
    metadata = body.get("metadata")
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidRequest("metadata: must be an object of texts")
    if len(metadata) > 16 or any(len(name) > 64 or len(value) > 512 for name, value in metadata.items()):
        raise InvalidRequest("metadata: at most 16 entries, names up to 64 and values up to 512 characters")
