"""A job's token log as the events of a streamed response (OpenAI's Responses API).

Which events come, and their ``sequence_number``, depend on the log alone: a stream that is followed while it grows and
one that is replayed later, by another gateway, are equal byte for byte. So a client can go on behind any number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orcd.events import End, Error, Event, Token, TokenLogprob, ToolCallDelta
from orcd.openai import logprobs
from orcd.openai.responses import call_item, response
from orcd.result import Result, ResultBuilder, ToolCall

STEPS = 1024
"""Numbers that belong to one token of the log: the events of token n (from 1) have n * STEPS and up."""


def num_tokens_seen(sequence_number: int) -> int:
    """How many tokens a client has that has all events up to this number."""
    return max(0, sequence_number) // STEPS


class ResponseEvents:
    """Makes the events of one response; feed it each event of the job's log from the first on.

    ``body`` and ``created_s`` are what the response was created with.
    """

    def __init__(self, job_id: str, body: Mapping[str, Any], created_s: int) -> None:
        self.num_tokens = 0
        self._job_id = job_id
        self._body = body
        self._created_s = created_s
        self._result = ResultBuilder(job_id)
        self._num_items = 0
        self._item: _Item | None = None
        self._call: _Call | None = None

    def begin(self) -> list[dict[str, Any]]:
        """The events that need no log."""
        begun = response(self._body, Result(self._job_id, "running"), self._created_s)
        kinds = ("response.created", "response.in_progress")
        return [{"type": kind, "sequence_number": number, "response": begun} for number, kind in enumerate(kinds)]

    def feed(self, event: Event) -> list[dict[str, Any]]:
        """What the next event of the log adds."""
        self._result.add(event)
        match event:
            case Token():
                self.num_tokens += len(event.ids)
                made = self._grow("reasoning", event.analysis) + self._grow("message", event.t, event.logprobs or ())
                made += self._grow_calls(event.tool_calls or ())
                first_number = self.num_tokens * STEPS
            case End() | Error():
                made = self._end(event)
                first_number = (self.num_tokens + 1) * STEPS
            case _:
                return []
        for number, each in enumerate(made, first_number):
            each["sequence_number"] = number
        return made

    def _end(self, event: End | Error) -> list[dict[str, Any]]:
        is_whole = isinstance(event, End) and event.finish_reason != "length"
        status = "completed" if is_whole else "incomplete"
        made = []
        has_message = self._item is not None and self._item.kind == "message"
        if isinstance(event, End) and not (has_message or self._call):
            made += self._open("message")  # an answer without text or calls is a message, too
        made += self._close(status) + self._close_call(status)
        kind = status if isinstance(event, End) else "failed"
        ended = response(self._body, self._result.result(), self._created_s)
        return [*made, {"type": f"response.{kind}", "response": ended}]

    def _grow(self, kind: str, text: str, likely: Sequence[TokenLogprob] = ()) -> list[dict[str, Any]]:
        if not (text or likely):
            return []
        made = [] if self._item is not None and self._item.kind == kind else self._open(kind)
        assert self._item is not None
        return [*made, self._item.grow(text, likely)]

    def _grow_calls(self, deltas: Sequence[ToolCallDelta]) -> list[dict[str, Any]]:
        made = []
        for delta in deltas:
            if delta.id:
                made += self._open_call(delta)
            made += self._call.grow(delta.arguments) if self._call else []
        return made

    def _open_call(self, delta: ToolCallDelta) -> list[dict[str, Any]]:
        """A message stays open beside calls: there may be more of its text behind them."""
        made = self._close_call("completed")
        if self._item is not None and self._item.kind == "reasoning":
            made += self._close("completed")
        self._call = _Call(self._job_id, delta, self._num_items)
        self._num_items += 1
        return made + self._call.opened()

    def _close_call(self, status: str) -> list[dict[str, Any]]:
        call, self._call = self._call, None
        return [] if call is None else call.closed(status)

    def _open(self, kind: str) -> list[dict[str, Any]]:
        made = self._close("completed") + self._close_call("completed")
        self._item = _Item(kind, self._job_id, self._num_items)
        self._num_items += 1
        return made + self._item.opened()

    def _close(self, status: str) -> list[dict[str, Any]]:
        item, self._item = self._item, None
        return [] if item is None else item.closed(status)


class _Item:
    """A message, or the reasoning before it, while it grows."""

    def __init__(self, kind: str, job_id: str, index: int) -> None:
        self.kind = kind
        self._id = f"msg_{job_id}" if kind == "message" else f"rs_{job_id}"
        self._index = index
        self._part_type = "output_text" if kind == "message" else "reasoning_text"
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._place = {"item_id": self._id, "output_index": index, "content_index": 0}

    def opened(self) -> list[dict[str, Any]]:
        item = {**self._as_dict("in_progress"), "content": []}
        return [
            {"type": "response.output_item.added", "output_index": self._index, "item": item},
            {"type": "response.content_part.added", **self._place, "part": self._part()},
        ]

    def grow(self, text: str, likely: Sequence[TokenLogprob]) -> dict[str, Any]:
        listed = logprobs.listed(likely)
        self._text.append(text)
        self._logprobs += listed
        return {"type": f"response.{self._part_type}.delta", **self._place, "delta": text, **self._likely(listed)}

    def closed(self, status: str) -> list[dict[str, Any]]:
        text: dict[str, Any] = {"text": "".join(self._text), **self._likely(self._logprobs)}
        return [
            {"type": f"response.{self._part_type}.done", **self._place, **text},
            {"type": "response.content_part.done", **self._place, "part": self._part()},
            {"type": "response.output_item.done", "output_index": self._index, "item": self._as_dict(status)},
        ]

    def _as_dict(self, status: str) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self._id, "type": self.kind, "status": status, "content": [self._part()]}
        return {**item, "role": "assistant"} if self.kind == "message" else {**item, "summary": []}

    def _part(self) -> dict[str, Any]:
        part: dict[str, Any] = {"type": self._part_type, "text": "".join(self._text), **self._likely(self._logprobs)}
        return {**part, "annotations": []} if self.kind == "message" else part

    def _likely(self, listed: list[dict[str, Any]]) -> dict[str, Any]:
        return {"logprobs": listed} if self.kind == "message" else {}


class _Call:
    """A call of a tool while its arguments grow."""

    def __init__(self, job_id: str, delta: ToolCallDelta, index: int) -> None:
        self._job_id = job_id
        self._first = delta
        self._index = index
        self._arguments: list[str] = []

    def opened(self) -> list[dict[str, Any]]:
        return [self._changed("added", "in_progress")]

    def grow(self, arguments: str) -> list[dict[str, Any]]:
        self._arguments.append(arguments)
        grown = {"type": "response.function_call_arguments.delta", **self._place(), "delta": arguments}
        return [grown] if arguments else []

    def closed(self, status: str) -> list[dict[str, Any]]:
        whole = {"name": self._first.name, "arguments": "".join(self._arguments)}
        done = {"type": "response.function_call_arguments.done", **self._place(), **whole}
        return [done, self._changed("done", status)]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item("")["id"], "output_index": self._index}

    def _changed(self, change: str, status: str) -> dict[str, Any]:
        return {"type": f"response.output_item.{change}", "output_index": self._index, "item": self._item(status)}

    def _item(self, status: str) -> dict[str, Any]:
        call = ToolCall(self._first.id, self._first.name, "".join(self._arguments))
        return call_item(self._job_id, self._first.index, call, status)
