"""Server-sent events (WHATWG HTML, section 9.2): how a response streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import StreamingResponse

from orcd.errors import OrcdError
from orcd.gateway.api_error import ApiError, stopping

CANNOT_RESUME = ApiError(
    409, "Redis lost a part of this stream, which was generated again; read it from the start", code="log_rewritten"
)
"""Where a client goes on in the middle of an event that was cut in another way before."""
DONE = b"data: [DONE]\n\n"
PING = b": waiting\n"
"""A comment, which keeps proxies from closing a connection on which nothing else happens.

A line of its own and no more: the empty line of an event would be one to OpenAI's SDK, as ids of events go on to count.
"""
PING_S = 10.0

_encoder = msgspec.json.Encoder()


def frame(data: Any, *, event_id: str = "", event: str = "") -> bytes:
    """One event; ``event_id`` is what a client that connects again sends as Last-Event-ID."""
    lines = [f"id: {event_id}\n".encode()] if event_id else []
    lines += [f"event: {event}\n".encode()] if event else []
    return b"".join([*lines, b"data: ", _encoder.encode(data), b"\n\n"])


def response(frames: AsyncGenerator[bytes, None], failure: Callable[[ApiError], bytes]) -> StreamingResponse:
    """The answer that streams these frames; no proxy should hold them back.

    ``failure`` makes the last one where the job can be read no further, or the gateway stops. A job's own error is an
    event that was read.
    """
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(_told(frames, failure), media_type="text/event-stream", headers=headers)


async def _told(frames: AsyncGenerator[bytes, None], failure: Callable[[ApiError], bytes]) -> AsyncIterator[bytes]:
    try:
        async with aclosing(frames):
            async for each in frames:
                yield each
    except OrcdError as error:
        yield failure(ApiError.of(error))
    except asyncio.CancelledError:  # by the server that stops; or the caller has left, who is sent nothing any more
        yield failure(stopping())
