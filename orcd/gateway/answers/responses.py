"""``/v1/responses``: a job under OpenAI's Responses API, whose stream can be read again from any place."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from orcd.errors import InvalidRequest
from orcd.gateway.answers import jobs, sse
from orcd.gateway.answers.delivery import Delivery
from orcd.gateway.answers.event_reader import EventReader
from orcd.gateway.answers.response_events import STEPS, ResponseEvents, num_tokens_seen
from orcd.gateway.answers.whole_answer import WholeAnswer
from orcd.gateway.api_error import ApiError
from orcd.gateway.endpoint import Call, endpoint, json_response, read_flag
from orcd.openai.endpoints import DEFAULTS
from orcd.openai.responses import ECHOED, conversation, items, parse, response

URL = "/v1/responses"
NOTHING_SEEN = -1
MOST_SEEN = 2**53 - 1
"""The largest number of an event that a caller can have seen: JSON's readers keep no larger ones exactly."""
REFUSALS = ("INVALID_REQUEST", "CONTEXT_LENGTH_EXCEEDED")
"""Errors that only a worker finds and that are the call's; any other leaves a response of the status failed."""
_SEQUENCE_NUMBER = re.compile(r"-?[0-9]{1,18}")
_ITEM_ID = re.compile(r"(?:msg|rs|fc)_([A-Za-z0-9.:-]{1,128})(?:_[0-9]{1,9})?")


@endpoint
async def create(call: Call) -> Response:
    """Begin a response, and answer with its stream, its end, or in the background with the id to ask for it by."""
    body = await call.json()
    streams, background = Delivery.read(body).streams, read_flag(body, "background")
    before = await _conversation_before(call, body.get("previous_response_id"))
    body = {**body, "input": await _resolved(call, body.get("input"))}
    request = parse(body, {**DEFAULTS, "on_disconnect": "continue" if background else "cancel"}, before)
    call.check_model(request.model)
    job_id = await jobs.submit(call, request, in_background=background)
    await jobs.keep(call, job_id, {name: body[name] for name in ("model", *ECHOED) if body.get(name) is not None})
    if streams:
        return _Stream(call, job_id, NOTHING_SEEN)
    if background:
        return await _current(call, job_id)
    return WholeAnswer(call, lambda results, created_s: response(body, results[0], created_s), [job_id], REFUSALS)


@endpoint
async def retrieve(call: Call) -> Response:
    """A response as far as it has come; with ``stream=true`` its events behind ``starting_after``."""
    query = call.request.query_params
    streams = query.get("stream", "false")
    if streams not in ("true", "false"):
        raise ApiError(400, "stream: must be true or false", param="stream")
    text = query.get("starting_after", call.request.headers.get("last-event-id", str(NOTHING_SEEN)))
    if _SEQUENCE_NUMBER.fullmatch(text) is None or not NOTHING_SEEN <= int(text) <= MOST_SEEN:
        raise ApiError(400, "starting_after: must be a sequence number", param="starting_after")
    job_id = _job_id(call)
    if streams == "false":
        return await _current(call, job_id)
    return _Stream(call, job_id, int(text))


@endpoint
async def cancel(call: Call) -> Response:
    """Cancel a response; one that has ended stays as it is."""
    job_id = _job_id(call)
    kept = await jobs.read_kept(call, job_id)
    if kept.result.state in ("queued", "running"):
        await call.gateway.client.cancel(job_id)
    return await _current(call, job_id)


@endpoint
async def delete(call: Call) -> Response:
    """Delete a response."""
    if not await jobs.delete(call, _job_id(call)):
        raise jobs.not_found()
    return json_response({"id": call.request.path_params["id"], "object": "response", "deleted": True})


ROUTES = (
    Route(URL, create, methods=["POST"]),
    Route(URL + "/{id}", retrieve, methods=["GET"]),
    Route(URL + "/{id}", delete, methods=["DELETE"]),
    Route(URL + "/{id}/cancel", cancel, methods=["POST"]),
)


def _job_id(call: Call) -> str:
    job_id: str = call.request.path_params["id"].removeprefix("resp_")
    jobs.check_owner(call, job_id)
    return job_id


async def _conversation_before(call: Call, previous_id: Any) -> list[dict[str, Any]] | None:
    """The messages of the response that a new one names as its previous one. Raises `ApiError` 400."""
    if previous_id is None:
        return None
    if not isinstance(previous_id, str):
        raise InvalidRequest("previous_response_id: must be text")
    job_id = previous_id.removeprefix("resp_")
    try:
        jobs.check_owner(call, job_id)
        kept = await jobs.read_kept(call, job_id)
    except ApiError:
        raise _no_previous("there is no such response, or it is no longer kept") from None
    if kept.result.state != "succeeded":
        raise _no_previous(f"the response has no answer, as it is {kept.result.state}")
    request = await jobs.read_request(call, job_id)
    if request is None or request.messages is None:
        raise _no_previous("what it answers is no conversation")
    return conversation(kept.body, request, kept.result)


async def _resolved(call: Call, given: Any) -> Any:
    """The input of a body, with the items that it only refers to. Raises `ApiError` 404 as OpenAI does.

    And 413 where these together are longer than a body may be: one that is long may be referred to many times.
    """
    if not isinstance(given, list):
        return given
    known: dict[str, tuple[dict[str, Any], int]] = {}
    most = bytes_left = call.gateway.settings.max_body_bytes
    resolved = []
    for index, item in enumerate(given):
        if not _is_reference(item):
            resolved.append(item)
            continue
        item_id = item.get("id")
        match = _ITEM_ID.fullmatch(item_id) if isinstance(item_id, str) else None
        if match is not None and item_id not in known:
            found = await _items(call, match[1])
            known |= {each["id"]: (each, len(msgspec.json.encode(each))) for each in found}
        if item_id not in known:
            message = f"input[{index}]: there is no such item, or its response is no longer kept"
            raise ApiError(404, message, code="not_found", param=f"input[{index}]")
        referred, num_bytes = known[item_id]
        bytes_left -= num_bytes
        if bytes_left < 0:
            message = f"input: the items that it refers to have more than {most} bytes together"
            raise ApiError(413, message, code="body_too_large", param="input")
        resolved.append(referred)
    return resolved


def _is_reference(item: Any) -> bool:
    """The type may be left out, or null, where there is nothing but an id."""
    if not isinstance(item, dict):
        return False
    kind = item.get("type")
    return kind == "item_reference" or (kind is None and item.keys() | {"type"} == {"id", "type"})


async def _items(call: Call, job_id: str) -> list[dict[str, Any]]:
    """Those of a job's answer, if it is the caller's and has ended."""
    try:
        jobs.check_owner(call, job_id)
        result = (await jobs.read_kept(call, job_id)).result
    except ApiError:
        return []
    return [] if result.state in ("queued", "running") else items(result)


def _no_previous(problem: str) -> ApiError:
    name = "previous_response_id"
    return ApiError(400, f"{name}: {problem}", code="previous_response_not_found", param=name)


async def _current(call: Call, job_id: str) -> Response:
    kept = await jobs.read_kept(call, job_id)
    return json_response(response(kept.body, kept.result, kept.created_s))


class _Stream(Response):
    """The events of a response behind a sequence number."""

    def __init__(self, call: Call, job_id: str, seen: int) -> None:
        super().__init__()
        self._call = call
        self._job_id = job_id
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kept = await jobs.read_kept(self._call, self._job_id)
        events = ResponseEvents(self._job_id, kept.body, kept.created_s)
        async with EventReader(self._call.gateway.client, self._job_id) as reader:
            if self._seen == NOTHING_SEEN and not kept.body.get("background"):
                await reader.wait_for_start()
            await sse.response(self._frames(reader, events), lambda error: _failure(error, events.num_tokens))(
                scope, receive, send
            )

    async def _frames(self, reader: EventReader, events: ResponseEvents) -> AsyncGenerator[bytes, None]:
        num_seen = num_tokens_seen(self._seen)
        for made in events.begin():
            if made["sequence_number"] > self._seen:
                yield _frame(made)
        async for found in reader.events(sse.PING_S):
            if found is None:
                yield sse.PING
                continue
            _, event = found
            before = events.num_tokens
            for made in events.feed(event):
                if before < num_seen < events.num_tokens:
                    yield _failure(sse.CANNOT_RESUME, num_seen)
                    return
                if made["sequence_number"] > self._seen:
                    yield _frame(made)


def _failure(error: ApiError, num_tokens: int) -> bytes:
    """The last event of a stream that cannot go on behind that many tokens."""
    return _frame({**error.body["error"], "type": "error", "sequence_number": num_tokens * STEPS + STEPS - 1})


def _frame(event: Mapping[str, Any]) -> bytes:
    return sse.frame(event, event_id=str(event["sequence_number"]), event=event["type"])
