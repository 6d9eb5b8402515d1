"""``/v1/chat/completions`` and ``/v1/completions``: a job for each prompt, answered whole or as a stream."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from orcd.errors import InvalidRequest
from orcd.events import Error, Started
from orcd.gateway.answers import sse
from orcd.gateway.answers.chunks import Chunks
from orcd.gateway.answers.delivery import Delivery
from orcd.gateway.answers.event_reader import EventReader
from orcd.gateway.answers.jobs import cancel, check_owner, submit_all
from orcd.gateway.answers.whole_answer import WholeAnswer
from orcd.gateway.api_error import ApiError
from orcd.gateway.endpoint import Call, endpoint
from orcd.openai.completions import asks_for_no_answer, echoes, parse_all, response_of_all
from orcd.openai.endpoints import DEFAULTS, parse_body, response_body
from orcd.request import Request
from orcd.result import Result

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_DEFAULTS = {"on_disconnect": "cancel"}
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
    requests = _parse(url, body)
    request = requests[0]  # what is asked of all prompts alike
    if delivery.streams:
        _check_chunks(body, request)
    call.check_model(request.model)
    last_event_id = call.request.headers.get("last-event-id")
    if delivery.streams and last_event_id is not None:
        if len(requests) > 1:
            raise ApiError(400, "Last-Event-ID: a stream of several prompts has no such ids", param="Last-Event-ID")
        job_id, num_seen = _resumed(call, last_event_id)
        job_ids = [job_id]
    else:
        job_ids, num_seen = await submit_all(call, requests), None
    if not delivery.streams:
        return WholeAnswer(call, partial(_respond, url, body), job_ids)
    chunks = Chunks(
        job_ids[0],
        request.model or "",
        is_chat=url == CHAT,
        include_usage=delivery.include_usage,
        num_choices=request.n,
        echoes=[text or "" for text in echoes(body, len(requests))],
    )
    return _StreamedAnswer(call, chunks, job_ids, num_seen)


def _check_chunks(body: Mapping[str, Any], request: Request) -> None:
    """Raises `InvalidRequest` for what chunks have no place for."""
    if body.get("prompt_logprobs") is None and request.prompt_logprobs is not None:
        raise InvalidRequest("echo: needs stream false with logprobs, and with a prompt of token ids")
    if request.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs: needs stream false, as chunks have no place for them")
    if asks_for_no_answer(body):
        raise InvalidRequest("max_tokens: 0 needs stream false")


def _parse(url: str, body: Mapping[str, Any]) -> list[Request]:
    if url == CHAT:
        return [parse_body(url, body, _DEFAULTS)]
    return parse_all(body, {**DEFAULTS, **_DEFAULTS})


def _respond(url: str, body: Mapping[str, Any], results: Sequence[Result], created_s: int) -> dict[str, Any]:
    if url == CHAT:
        return response_body(url, body, results[0], created_s)
    return response_of_all(body, results, created_s)


def _resumed(call: Call, last_event_id: str) -> tuple[str, int]:
    """The job that a client goes on with, and how many tokens it has."""
    match = _EVENT_ID.fullmatch(last_event_id)
    if match is None:
        raise ApiError(400, "Last-Event-ID: must be the id of an event of this stream", param="Last-Event-ID")
    check_owner(call, match[1])
    return match[1], int(match[2])


class _StreamedAnswer(Response):
    """Follows a job from behind the tokens that the client has, or those of several prompts from their beginning."""

    def __init__(self, call: Call, chunks: Chunks, job_ids: Sequence[str], num_seen: int | None) -> None:
        super().__init__()
        self._call = call
        self._chunks = chunks
        self._job_ids = job_ids
        self._num_seen = num_seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with EventReader(self._call.gateway.client, *self._job_ids) as reader:
            try:
                await reader.wait_for_start()
            except ApiError:
                await cancel(self._call, self._job_ids)
                raise
            await sse.response(self._frames(reader), _failure)(scope, receive, send)

    async def _frames(self, reader: EventReader) -> AsyncGenerator[bytes, None]:
        num_seen = self._num_seen or 0
        async for found in reader.events(sse.PING_S):
            if found is None:
                yield sse.PING
                continue
            job, event = found
            before = self._chunks.num_tokens
            made = self._chunks.feed(event, job)
            if isinstance(event, Error):
                await cancel(self._call, self._job_ids)
                yield sse.frame(reader.failure(job, event).body)
                break
            if before < num_seen < self._chunks.num_tokens:
                yield sse.frame(sse.CANNOT_RESUME.body)
                return
            elif before < num_seen or (isinstance(event, Started) and self._num_seen is not None):
                continue
            # Behind what was seen, the news that a choice has ended may come a second time: it has no token.
            for chunk in made:
                yield sse.frame(chunk, event_id=self._event_id())
        yield sse.DONE

    def _event_id(self) -> str:
        """What the client goes on behind: of several prompts no one number says it."""
        return f"{self._job_ids[0]}:{self._chunks.num_tokens}" if len(self._job_ids) == 1 else ""


def _failure(error: ApiError) -> bytes:
    return sse.frame(error.body) + sse.DONE
