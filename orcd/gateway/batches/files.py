"""``/v1/files``."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from typing import Any, BinaryIO

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from orcd.gateway.api_error import ApiError
from orcd.gateway.batches.batch_store import ENDED
from orcd.gateway.batches.file_store import PURPOSES, FileObject, FileStore
from orcd.gateway.batches.pages import page
from orcd.gateway.batches.shared_folder import unavailable
from orcd.gateway.endpoint import Call, endpoint, json_response

URL = "/v1/files"
SHORTEST_LIFE_S, LONGEST_LIFE_S = 3600, 30 * 24 * 3600
_EXPIRES_AFTER = {name: f"expires_after[{name}]" for name in ("anchor", "seconds")}
"""The members of that object as fields of a form."""
CHUNK_BYTES = 1 << 20
MOST_LISTED = 10_000
"""Files of a list at most, and where nobody asks for fewer, as at OpenAI."""
ORDERS = ("asc", "desc")


def file_store(call: Call) -> FileStore:
    """The files of this gateway. Raises `ApiError` 501 if it has none."""
    store = call.gateway.files
    if store is None:
        raise ApiError(501, "this gateway keeps no files; start it with --files-dir", code="not_supported")
    return store


@endpoint
async def create(call: Call) -> Response:
    """Upload a file."""
    store = file_store(call)
    try:
        async with _limited(call).form(max_files=1, max_fields=16) as form:
            _check_fields(form)
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile):
                raise ApiError(400, "file: must be a file of a multipart form", param="file")
            _check_purpose(purpose)
            kept = await store.write(
                call.key,
                _chunks(file),
                filename=file.filename or "file",
                purpose=str(purpose),
                life_s=_life_s_of_form(form),
            )
    except OSError as error:  # of the form, whose file is written down on its way, or of the folder
        raise unavailable(error) from None
    return json_response(kept)


@endpoint
async def list_files(call: Call) -> Response:
    """The caller's files, the newest first unless the query has another ``order``."""
    purpose = call.request.query_params.get("purpose")
    if purpose is not None:
        _check_purpose(purpose)
    kept = await asyncio.to_thread(file_store(call).list_all, call.key)
    files = [file for file in kept if purpose in (None, file.purpose)]
    order = call.request.query_params.get("order", "desc")
    if order not in ORDERS:
        raise ApiError(400, f"order: must be {' or '.join(ORDERS)}", param="order")
    return json_response(page(call, files if order == "desc" else files[::-1], limit=MOST_LISTED, most=MOST_LISTED))


@endpoint
async def retrieve(call: Call) -> Response:
    """What is known of a file."""
    return json_response(await _found(call))


@endpoint
async def content(call: Call) -> Response:
    """What is in a file."""
    return _Content(file_store(call), await _found(call))


@endpoint
async def delete(call: Call) -> Response:
    """Delete a file, unless a batch that has not ended reads or writes it: its lines would run once more."""
    found = await _found(call)
    for batch in await call.gateway.batches.list_all(call.key):
        if batch.status not in ENDED and found.id in (batch.input_file_id, batch.output_file_id, batch.error_file_id):
            message = f"file_id: {batch.id} has not ended and needs this file; cancel the batch first"
            raise ApiError(409, message, code="file_in_use", param="file_id")
    await asyncio.to_thread(file_store(call).delete, found.id)
    return json_response({"id": found.id, "object": "file", "deleted": True})


ROUTES = (
    Route(URL, create, methods=["POST"]),
    Route(URL, list_files, methods=["GET"]),
    Route(URL + "/{id}", retrieve, methods=["GET"]),
    Route(URL + "/{id}", delete, methods=["DELETE"]),
    Route(URL + "/{id}/content", content, methods=["GET"]),
)


class _Content(Response):
    """What a file holds now; that of a batch may grow meanwhile, or begin anew at another gateway."""

    def __init__(self, store: FileStore, found: FileObject) -> None:
        super().__init__()
        self._store = store
        self._found = found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Before the status is sent: it may have been deleted just now, or replaced by a shorter one.
        with await asyncio.to_thread(self._store.open, self._found.id) as file:
            num_bytes = await asyncio.to_thread(_size, file)
            answer = StreamingResponse(
                _parts(file, num_bytes),
                media_type="application/octet-stream",
                headers={"content-length": str(num_bytes)},
            )
            await answer(scope, receive, send)


async def _found(call: Call) -> FileObject:
    return await asyncio.to_thread(file_store(call).find, call.key, call.request.path_params["id"])


def life_s(given: Any, param: str) -> int | None:
    """How long a file is kept, of the object that says so at OpenAI; None if it is until somebody deletes it.

    Raises `ApiError` 400, which names the field ``param``.
    """
    if given is None:
        return None
    if not isinstance(given, dict) or given.keys() != {"anchor", "seconds"} or given["anchor"] != "created_at":
        raise ApiError(400, f"{param}: must have the anchor created_at, seconds and nothing else", param=param)
    seconds = given["seconds"]
    if isinstance(seconds, float) and seconds.is_integer():  # 3600.0 is a whole number in JSON, too
        seconds = int(seconds)
    if not isinstance(seconds, int) or not SHORTEST_LIFE_S <= seconds <= LONGEST_LIFE_S:
        message = f"{param}: seconds must be a whole number from {SHORTEST_LIFE_S} to {LONGEST_LIFE_S}"
        raise ApiError(400, message, param=param)
    return seconds


def _life_s_of_form(form: FormData) -> int | None:
    given: dict[str, Any] = {name: form[field] for name, field in _EXPIRES_AFTER.items() if field in form}
    seconds = given.get("seconds")
    if isinstance(seconds, str) and re.fullmatch("[0-9]{1,9}", seconds):
        given["seconds"] = int(seconds)
    return life_s(given or None, "expires_after")


def _check_fields(form: FormData) -> None:
    known = ("file", "purpose", *_EXPIRES_AFTER.values())
    for name in form:
        if name not in known:
            message = f"{name[:80]}: unknown field; known are {', '.join(known)}"
            raise ApiError(400, message, param=name[:80])


def _check_purpose(purpose: object) -> None:
    if purpose not in PURPOSES:
        raise ApiError(400, f"purpose: must be one of {', '.join(PURPOSES)}", param="purpose")


def _limited(call: Call) -> Request:
    """The request, whose body ends in an error where it is longer than a file may be."""
    most = call.gateway.settings.max_file_bytes
    num_bytes = 0

    async def receive() -> Message:
        nonlocal num_bytes
        message = await call.request.receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > most + CHUNK_BYTES:  # the form has a few lines of its own
            raise ApiError(413, f"file: is longer than {most} bytes", code="file_too_large", param="file")
        return message

    return Request(call.request.scope, receive)


def _size(file: BinaryIO) -> int:
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    return num_bytes


async def _parts(file: BinaryIO, num_bytes: int) -> AsyncIterator[bytes]:
    while num_bytes and (part := await asyncio.to_thread(file.read, min(CHUNK_BYTES, num_bytes))):
        num_bytes -= len(part)
        yield part
    if num_bytes:  # a longer answer was promised: its caller would wait for the rest if it ended as others do
        raise EOFError(f"{num_bytes} bytes of a file are gone")


async def _chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(CHUNK_BYTES):
        yield chunk
