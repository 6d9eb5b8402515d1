"""The input of responses as messages of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orcd.errors import InvalidRequest
from orcd.request import TEXT_PARTS


def messages_of(instructions: Any, given: Any, before: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """``instructions`` and ``input`` of a body as messages, with those of a conversation ``before`` between them.

    Raises `InvalidRequest` naming the item.
    """
    if instructions is None:
        return [*before, *_messages(given)]
    if not isinstance(instructions, str):
        raise InvalidRequest("instructions: must be text")
    return [{"role": "system", "content": instructions}, *before, *_messages(given)]


def _messages(given: Any) -> list[dict[str, Any]]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise InvalidRequest("input: must be text or a list of items")
    messages: list[dict[str, Any]] = []
    reasoning: list[str] = []
    for index, item in enumerate(given):
        where = f"input[{index}]"
        if not isinstance(item, dict):
            raise InvalidRequest(f"{where}: must be an object")
        if item.get("type") == "reasoning":
            reasoning.append(_reasoning(item, where))
            continue
        message = _message(item, where)
        if message["role"] == "assistant" and reasoning:
            message["reasoning_content"] = "".join(reasoning)
            reasoning.clear()
        _append(messages, message)
    return messages


def _message(item: dict[str, Any], where: str) -> dict[str, Any]:
    match item.get("type", "message"):
        case "message":
            if not isinstance(item.get("role"), str):
                raise InvalidRequest(f"{where}: needs a role, such as user")
            return {"role": item["role"], "content": _content(item.get("content"), f"{where}.content")}
        case "function_call":
            function = {name: _text(item, name, where) for name in ("name", "arguments")}
            call = {"id": _text(item, "call_id", where), "type": "function", "function": function}
            return {"role": "assistant", "content": None, "tool_calls": [call]}
        case "function_call_output":
            output = _content(item.get("output"), f"{where}.output")
            return {"role": "tool", "tool_call_id": _text(item, "call_id", where), "content": output}
        case _:
            raise InvalidRequest(
                f"{where}.type: only message, function_call, function_call_output and reasoning are supported, and "
                "item_reference at a gateway"
            )


def _append(messages: list[dict[str, Any]], message: dict[str, Any]) -> None:
    """Calls of tools belong to the message of the assistant before them; it may hold several."""
    last = messages[-1] if messages else {}
    if "tool_calls" in message and last.get("role") == "assistant":
        last["tool_calls"] = [*last.get("tool_calls", []), *message["tool_calls"]]
    else:
        messages.append(message)


def _content(content: Any, where: str) -> Any:
    """Text or parts, whose types are those of chat completions."""
    if isinstance(content, str | None):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where}: must be text or a list of parts")
    parts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in TEXT_PARTS:
            raise InvalidRequest(f"{where}[{index}]: only parts of text are supported, such as input_text")
        parts.append({"type": "text", "text": _text(part, TEXT_PARTS[kind], f"{where}[{index}]")})
    return parts


def _reasoning(item: dict[str, Any], where: str) -> str:
    texts = item.get("content") or item.get("summary") or []
    if not isinstance(texts, list) or not all(
        isinstance(text, dict) and isinstance(text.get("text"), str) for text in texts
    ):
        raise InvalidRequest(f"{where}.content: must be a list of texts")
    return "".join(text["text"] for text in texts)


def _text(item: dict[str, Any], name: str, where: str) -> str:
    if not isinstance(item.get(name), str):
        raise InvalidRequest(f"{where}.{name}: must be text")
    value: str = item[name]
    return value
