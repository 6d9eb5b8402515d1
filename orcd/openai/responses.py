"""Responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orcd.errors import InvalidRequest
from orcd.events import Error
from orcd.openai import logprobs
from orcd.openai.body_fields import BodyFields, is_one_of, unsupported
from orcd.openai.body_table import RESPONSES
from orcd.openai.chat import read_tools
from orcd.openai.input_items import messages_of
from orcd.openai.usage import response_usage
from orcd.request import Request
from orcd.result import Choice, Result, ToolCall
from orcd.sampling import unknown_field

_LOGPROBS = "message.output_text.logprobs"
_INCLUDED = (
    *(_LOGPROBS, "reasoning.encrypted_content", "file_search_call.results", "web_search_call.results"),
    *("web_search_call.action.sources", "message.input_image.image_url", "computer_call_output.output.image_url"),
    "code_interpreter_call.outputs",
)
"""What may be included at OpenAI. But for log probabilities it is of what no answer has here."""
_OFF = {"summary": "auto", "generate_summary": "auto", "mode": "standard", "context": "auto"}
"""Of the fields in ``reasoning`` the value that leaves it to the model. None summarises what it thought."""
ECHOED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
    "background": False,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
}
"""Fields of a body that its response repeats, and what it says where the body did not have them."""
_ITEM = {"cancelled": "incomplete", "failed": "incomplete"}
"""The status of the items of a response with this status, where it is another."""


def parse(body: Any, defaults: Mapping[str, Any], before: Sequence[dict[str, Any]] | None = None) -> Request:
    """The request of a body. Raises `InvalidRequest` naming the field.

    ``before`` is the `conversation` of the response that the body names as its previous one.
    """
    fields = BodyFields(body, RESPONSES)
    if before is None and "previous_response_id" in fields.combined:
        raise unsupported("previous_response_id", "send the whole conversation as input")
    _read_text(fields)
    _read_reasoning(fields)
    _read_logprobs(fields)
    _nest_tools(fields)
    read_tools(fields)
    instructions, given = (fields.combined.get(name) for name in ("instructions", "input"))
    fields.put("messages", messages_of(instructions, given, before or ()), "input")
    return fields.to_request(defaults)


def conversation(body: Mapping[str, Any], request: Request, result: Result) -> list[dict[str, Any]]:
    """The messages of a response and of those that it goes on from: what another one may go on from.

    ``body`` and ``request`` are what was asked for, ``result`` is the answer, of a job that succeeded. Instructions are
    for one response only, as at OpenAI.
    """
    asked = request.messages or []
    if body.get("instructions") is not None:
        asked = asked[1:]
    return asked + messages_of(None, items(result))


def items(result: Result) -> list[dict[str, Any]]:
    """The items of an answer, which has ended, as the input of another response may have them."""
    return _output(result.job_id, result.choices[0], "completed") if result.choices else []


def response(body: Mapping[str, Any], result: Result, created_s: int) -> dict[str, Any]:
    """The ``response`` object of a job, as far as it has come."""
    status = _status(result)
    has_succeeded = result.state == "succeeded"
    counted = response_usage(result.tokens_in, result.tokens_out, result.cached_tokens) if has_succeeded else None
    took_ms = result.queue_ms + result.ttft_ms + result.decode_ms
    return {
        "id": f"resp_{result.job_id}",
        "object": "response",
        "created_at": created_s,
        "completed_at": created_s + took_ms // 1000 if status == "completed" else None,
        "status": status,
        "error": None if status != "failed" or result.error is None else _error(result.error),
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": result.model or body.get("model"),
        "output": [] if not result.choices else _output(result.job_id, result.choices[0], _ITEM.get(status, status)),
        "usage": counted,
        **_echoed(body),
    }


def _echoed(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a response repeats of its body, with null for what the body left out: clients' types have these fields."""
    echoed = {name: default if body.get(name) is None else body[name] for name, default in ECHOED.items()}
    echoed["reasoning"] = ECHOED["reasoning"] | echoed["reasoning"]
    echoed["text"] = ECHOED["text"] | _given(echoed["text"])
    if echoed["text"]["format"]["type"] == "json_schema":
        echoed["text"]["format"] = {"description": None, "strict": False} | _given(echoed["text"]["format"])
    if isinstance(echoed["tool_choice"], dict):
        echoed["tool_choice"] = _flat(echoed["tool_choice"])
    left_out = dict.fromkeys(("description", "parameters", "strict"))
    echoed["tools"] = [left_out | _flat(tool) for tool in echoed["tools"]]
    return echoed


def _flat(function: Mapping[str, Any]) -> dict[str, Any]:
    """A function as responses have it: what chat completions have in an inner object stands beside the type."""
    outer = {name: value for name, value in function.items() if name != "function"}
    inner: dict[str, Any] = function.get("function", {})
    return outer | inner


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields that are null, as if they were not there."""
    return {name: value for name, value in fields.items() if value is not None}


def _status(result: Result) -> str:
    if result.state == "succeeded":
        return "completed" if result.finish_reason == "stop" else "incomplete"
    return {"queued": "queued", "running": "in_progress", "cancelled": "cancelled"}.get(result.state, "failed")


def _error(error: Error) -> dict[str, Any]:
    return {"code": error.code.lower(), "message": error.message}


def _output(job_id: str, choice: Choice, status: str) -> list[dict[str, Any]]:
    """The items of the answer: what the model thought, what it said, and the calls of tools that it wrote."""
    items: list[dict[str, Any]] = []
    if choice.reasoning is not None:
        content = [{"type": "reasoning_text", "text": choice.reasoning}]
        items.append({"id": f"rs_{job_id}", "type": "reasoning", "summary": [], "content": content, "status": status})
    text = {
        "type": "output_text",
        "text": choice.text,
        "annotations": [],
        "logprobs": logprobs.listed(choice.logprobs or ()),
    }
    if choice.text or choice.logprobs or not choice.tool_calls:
        message = {"id": f"msg_{job_id}", "type": "message", "role": "assistant"}
        items.append({**message, "status": status, "content": [text]})
    return items + [call_item(job_id, index, call, status) for index, call in enumerate(choice.tool_calls or ())]


def call_item(job_id: str, index: int, call: ToolCall, status: str) -> dict[str, Any]:
    """The item that a call of a tool is; ``index`` is its number in the answer."""
    function = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
    return {"id": f"fc_{job_id}_{index}", "type": "function_call", "status": status, **function}


def _read_text(fields: BodyFields) -> None:
    text = fields.combined.get("text", {})
    if not isinstance(text, dict):
        raise InvalidRequest("text: must be an object")
    for name in text:
        if name not in ("format", "verbosity"):
            raise unknown_field(f"text.{name}", ())
    if text.get("format") is not None:
        _read_format(fields, text["format"])
    if text.get("verbosity") not in (None, "medium"):
        raise unsupported("text.verbosity", "say it in a message")


def _read_format(fields: BodyFields, given: Any) -> None:
    """What chat completions have in ``json_schema`` stands beside the type here."""
    if not isinstance(given, dict):
        raise InvalidRequest("text.format: must be an object")
    fields.put("response_format.type", given.get("type"), "text.format.type")
    schema = {name: value for name, value in given.items() if name != "type" and value is not None}
    if schema or given.get("type") == "json_schema":
        fields.put("response_format.json_schema", schema, "text.format")


def _read_reasoning(fields: BodyFields) -> None:
    reasoning = fields.combined.get("reasoning", {})
    if not isinstance(reasoning, dict):
        raise InvalidRequest("reasoning: must be an object")
    for name, value in reasoning.items():
        if name == "effort" and value is not None:
            fields.put("chat_template_kwargs.reasoning_effort", value, "reasoning.effort")
        elif name != "effort" and value not in (None, _OFF.get(name)):
            raise unsupported(f"reasoning.{name[:80]}", "the text of the reasoning is in the answer")


def _read_logprobs(fields: BodyFields) -> None:
    include = fields.combined.get("include", [])
    top = fields.combined.get("top_logprobs")
    if not isinstance(include, list):
        raise InvalidRequest("include: must be a list")
    for name in include:
        if name not in _INCLUDED:
            raise InvalidRequest(f"include: must be of {', '.join(_INCLUDED)}")
    if _LOGPROBS in include:
        fields.put("logprobs", 0 if top is None else top, "top_logprobs")
    elif not is_one_of(top, (None, 0)):
        raise InvalidRequest(f"top_logprobs: needs {_LOGPROBS} in include")


def _nest_tools(fields: BodyFields) -> None:
    """Functions stand flat in these bodies; templates know those of chat completions."""
    tools = fields.combined.get("tools")
    if not isinstance(tools, list):
        return
    fields.combined["tools"] = [
        {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
        if isinstance(tool, dict) and tool.get("type") == "function" and "function" not in tool
        else tool
        for tool in tools
    ]
