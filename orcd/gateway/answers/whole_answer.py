"""The answer of one or more jobs in one piece, when they have ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from orcd.errors import BY_CODE
from orcd.events import Error
from orcd.gateway.answers import jobs
from orcd.gateway.answers.event_reader import EventReader
from orcd.gateway.endpoint import Call, json_response
from orcd.result import Result, ResultBuilder

LOOK_S = 1.0
"""How often a caller who waits is looked for."""


class WholeAnswer(Response):
    """Waits for the end of all jobs; ``respond`` makes the body of their results and the time they were created.

    ``refusals`` are the codes of a job's errors that are errors of the call, and end its other jobs. Others are told
    in the body.
    """

    def __init__(
        self,
        call: Call,
        respond: Callable[[Sequence[Result], int], dict[str, Any]],
        job_ids: Sequence[str],
        refusals: Collection[str] = BY_CODE,
    ) -> None:
        super().__init__()
        self._call = call
        self._respond = respond
        self._job_ids = job_ids
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. Who has left gets nothing: a job without listeners ends by itself, unless it was to go on."""
        client = self._call.gateway.client
        caller = HttpRequest(scope, receive)
        builders = [ResultBuilder(job_id) for job_id in self._job_ids]
        async with EventReader(client, *self._job_ids) as reader:
            look_at = time.monotonic() + LOOK_S
            async for found in reader.events(LOOK_S):
                if found is not None:
                    index, event = found
                    if isinstance(event, Error) and event.code in self._refusals:
                        await jobs.cancel(self._call, self._job_ids)
                        raise reader.failure(index, event)
                    builders[index].add(event)
                if time.monotonic() >= look_at:  # by the clock: an answer that is being written has no pauses
                    if await caller.is_disconnected():
                        return
                    look_at = time.monotonic() + LOOK_S
        created_s = (await client.status(self._job_ids[0])).created_ms // 1000
        answer = self._respond([builder.result() for builder in builders], created_s)
        await json_response(answer)(scope, receive, send)
