"""Chat completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orcd.errors import InvalidRequest
from orcd.events import ToolCallDelta
from orcd.openai import logprobs
from orcd.openai.body_fields import BodyFields, is_one_of, unsupported
from orcd.openai.body_table import CHAT
from orcd.openai.usage import usage
from orcd.request import Request
from orcd.result import Choice, Result


def parse(body: Any, defaults: Mapping[str, Any]) -> Request:
    """The request of a body. Raises `InvalidRequest` naming the field."""
    fields = BodyFields(body, CHAT)
    fields.require("messages")
    _read_logprobs(fields)
    read_tools(fields)
    return fields.to_request(defaults)


def response(body: Mapping[str, Any], result: Result, created_s: int) -> dict[str, Any]:
    """The ``chat.completion`` object of a job that succeeded."""
    return {
        "id": f"chatcmpl-{result.job_id}",
        "object": "chat.completion",
        "created": created_s,
        "model": result.model or body.get("model"),
        "choices": [_choice(index, choice) for index, choice in enumerate(result.choices)],
        "usage": usage(result),
        "system_fingerprint": result.fingerprints[-1] if result.fingerprints else None,
        **logprobs.of_prompt(result),
    }


def _choice(index: int, choice: Choice) -> dict[str, Any]:
    content = None if choice.tool_calls and not choice.text else choice.text
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if choice.reasoning is not None:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.tool_calls
        ]
    return {
        "index": index,
        "message": message,
        "logprobs": None if choice.logprobs is None else {"content": logprobs.listed(choice.logprobs), "refusal": None},
        "finish_reason": finish_reason(choice.finish_reason, has_calls=bool(choice.tool_calls)),
    }


def call_delta(delta: ToolCallDelta) -> dict[str, Any]:
    """What comes next of a call, as the chunks of a stream have it."""
    if not delta.id:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    function = {"name": delta.name, "arguments": delta.arguments}
    return {"index": delta.index, "id": delta.id, "type": "function", "function": function}


def finish_reason(reason: str | None, *, has_calls: bool) -> str | None:
    """``tool_calls`` where the model has stopped for the results of its calls."""
    return "tool_calls" if has_calls and reason == "stop" else reason


def _read_logprobs(fields: BodyFields) -> None:
    wanted = fields.combined.get("logprobs", False)
    top = fields.combined.get("top_logprobs")
    if not isinstance(wanted, bool):
        raise InvalidRequest("logprobs: must be true or false; top_logprobs says how many alternatives")
    if wanted:
        fields.put("logprobs", 0 if top is None else top, "logprobs" if top is None else "top_logprobs")
    elif not is_one_of(top, (None, 0)):
        raise InvalidRequest("top_logprobs: needs logprobs true")


def read_tools(fields: BodyFields) -> None:
    """The tools for the chat template, each as chat completions have it. Raises `InvalidRequest`."""
    tools = fields.combined.get("tools", [])
    choice, allowed = _allowed_tools(fields.combined.get("tool_choice", "auto"))
    named = _named_tool(choice)
    if named is None and choice not in ("auto", "none", "required"):
        raise unsupported("tool_choice", "give auto, none, required, or tools of the type function by their names")
    if not isinstance(tools, list):
        raise InvalidRequest("tools: must be a list")
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise InvalidRequest(f"tools[{index}]: only tools of the type function are supported")
        if not isinstance(tool.get("function"), dict) or not isinstance(tool["function"].get("name"), str):
            raise InvalidRequest(f"tools[{index}].function: must be an object with a name")
    if allowed is not None:
        if allowed - {tool["function"]["name"] for tool in tools}:
            raise InvalidRequest("tool_choice: allows a tool that is not in tools")
        tools = [tool for tool in tools if tool["function"]["name"] in allowed]
    parallel = fields.combined.get("parallel_tool_calls", True)
    if not isinstance(parallel, bool):
        raise InvalidRequest("parallel_tool_calls: must be true or false")
    if tools and choice != "none":
        fields.put("tools", tools, "tools")
        if not parallel:
            fields.put("parallel_tool_calls", parallel, "parallel_tool_calls")
    if choice == "required" or named is not None:
        fields.put("tool_choice", "required" if named is None else {"name": named}, "tool_choice")


def _allowed_tools(choice: Any) -> tuple[Any, set[str] | None]:
    """The mode of ``{"type": "allowed_tools", "mode": ..., "tools": [...]}`` and the names; None where all are allowed.

    Chat completions have mode and tools in an inner object.
    """
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return choice, None
    given = choice.get("allowed_tools", choice)
    mode, tools = (given.get(name) if isinstance(given, dict) else None for name in ("mode", "tools"))
    names = {_named_tool(tool) for tool in tools} if isinstance(tools, list) else set()
    if mode not in ("auto", "required") or not names or None in names:
        raise InvalidRequest(
            "tool_choice: allowed_tools need the mode auto or required, and tools of the type function"
        )
    return mode, {name for name in names if name is not None}


def _named_tool(choice: Any) -> str | None:
    """The name in ``{"type": "function", "function": {"name": ...}}``, or in that without the inner object."""
    if not isinstance(choice, dict) or choice.get("type") != "function":
        return None
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None
