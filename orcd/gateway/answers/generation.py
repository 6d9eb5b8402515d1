"""``/v1/chat/completions`` and ``/v1/completions``: a job, answered whole or as a stream."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from orcd.errors import InvalidRequest
from orcd.events import Error, Started
from orcd.gateway.answers import sse
from orcd.gateway.answers.chunks import Chunks
from orcd.gateway.answers.delivery import Delivery
from orcd.gateway.answers.event_reader import EventReader
from orcd.gateway.answers.jobs import check_owner, submit
from orcd.gateway.answers.whole_answer import WholeAnswer
from orcd.gateway.api_error import ApiError
from orcd.gateway.endpoint import Call, endpoint
from orcd.openai.endpoints import parse_body

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_EVENT_ID = re.compile(r"([A-Za-z0-9_.:-]{1,128}):(\d{1,18})")


@endpoint
async def chat(call: Call) -> Response:
    """``/v1/chat/completions``."""
    return await _answer(call, CHAT)


@endpoint
async def completions(call: Call) -> Response:
    """``/v1/completions``."""
    return await _answer(call, COMPLETIONS)


async def _answer(call: Call, url: str) -> Response:
    body = await call.json()
    delivery = Delivery.read(body)
    request = parse_body(url, body, {"on_disconnect": "cancel"})
    if delivery.streams and request.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs: needs stream false, as chunks have no place for them")
    call.check_model(request.model)
    last_event_id = call.request.headers.get("last-event-id")
    if delivery.streams and last_event_id is not None:
        job_id, num_seen = _resumed(call, last_event_id)
    else:
        job_id, num_seen = await submit(call, request), None
    if not delivery.streams:
        return WholeAnswer(call, url, body, job_id)
    chunks = Chunks(
        job_id,
        request.model or "",
        is_chat=url == CHAT,
        include_usage=delivery.include_usage,
        num_choices=request.n,
        echo=str(request.prompt) if body.get("echo") else "",
    )
    return _StreamedAnswer(call, chunks, job_id, num_seen)


def _resumed(call: Call, last_event_id: str) -> tuple[str, int]:
    """The job that a client goes on with, and how many tokens it has."""
    match = _EVENT_ID.fullmatch(last_event_id)
    if match is None:
        raise ApiError(400, "Last-Event-ID: must be the id of an event of this stream", param="Last-Event-ID")
    check_owner(call, match[1])
    return match[1], int(match[2])


class _StreamedAnswer(Response):
    """Follows a job, from behind the tokens that the client has."""

    def __init__(self, call: Call, chunks: Chunks, job_id: str, num_seen: int | None) -> None:
        super().__init__()
        self._call = call
        self._chunks = chunks
        self._job_id = job_id
        self._num_seen = num_seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with EventReader(self._call.gateway.client, self._job_id) as reader:
            await reader.wait_for_start()
            await sse.response(self._frames(reader), _failure)(scope, receive, send)

    async def _frames(self, reader: EventReader) -> AsyncGenerator[bytes, None]:
        num_seen = self._num_seen or 0
        async for event in reader.events(sse.PING_S):
            if event is None:
                yield sse.PING
                continue
            before = self._chunks.num_tokens
            made = self._chunks.feed(event)
            if isinstance(event, Error):
                yield sse.frame(ApiError.of_event(event).body)
            elif before < num_seen < self._chunks.num_tokens:
                yield sse.frame(sse.CANNOT_RESUME.body)
                return
            elif before < num_seen or (isinstance(event, Started) and self._num_seen is not None):
                continue
            # Behind what was seen, the news that a choice has ended may come a second time: it has no token.
            for chunk in made:
                yield sse.frame(chunk, event_id=f"{self._job_id}:{self._chunks.num_tokens}")
        yield sse.DONE


def _failure(error: ApiError) -> bytes:
    return sse.frame(error.body) + sse.DONE
