"""A job's answer in one piece, when it has ended."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from orcd.errors import BY_CODE
from orcd.events import Error
from orcd.gateway.answers.event_reader import EventReader
from orcd.gateway.api_error import ApiError
from orcd.gateway.endpoint import Call, json_response
from orcd.openai.endpoints import response_body
from orcd.result import ResultBuilder

LOOK_S = 1.0
"""How often a caller who waits is looked for."""


class WholeAnswer(Response):
    """Waits for a job's end; ``url`` is the endpoint and ``body`` what it was called with.

    ``refusals`` are the codes of the job's errors that are errors of the call; others are told in the body.
    """

    def __init__(
        self, call: Call, url: str, body: Mapping[str, Any], job_id: str, refusals: Collection[str] = BY_CODE
    ) -> None:
        super().__init__()
        self._call = call
        self._url = url
        self._body = body
        self._job_id = job_id
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. Who has left gets nothing: a job without listeners ends by itself, unless it was to go on."""
        client = self._call.gateway.client
        caller = HttpRequest(scope, receive)
        builder = ResultBuilder(self._job_id)
        async with EventReader(client, self._job_id) as reader:
            look_at = time.monotonic() + LOOK_S
            async for event in reader.events(LOOK_S):
                if event is not None:
                    builder.add(event)
                if time.monotonic() >= look_at:  # by the clock: an answer that is being written has no pauses
                    if await caller.is_disconnected():
                        return
                    look_at = time.monotonic() + LOOK_S
        result = builder.result()
        if isinstance(result.error, Error) and result.error.code in self._refusals:
            raise ApiError.of_event(result.error)
        created_s = (await client.status(self._job_id)).created_ms // 1000
        answer = response_body(self._url, self._body, result, created_s)
        await json_response(answer)(scope, receive, send)
