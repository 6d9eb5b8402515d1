"""Messages of a request in the form that a chat template was written for.

Clients send content as text or as parts, and the arguments of tool calls as JSON in a text. Templates are written for
one of the forms, and put a Python list or a text in quotes into the prompt when they get the other.

Prompts come out as with vLLM's normalisation, which makes a list of parts of every text where a template takes parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from orcd.errors import InvalidRequest
from worker.text.chat.content_form import ContentForm

TEXT_KEYS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking"}
"""Which key of a part of content has its text, by the part's type."""

_SHOWN = "[{'type': 'text', 'text': "
"""How a list of parts begins where a template writes it."""


def conform(messages: Sequence[Mapping[str, Any]], form: ContentForm) -> list[dict[str, Any]]:
    """The messages for a template of that ``form``. Raises `InvalidRequest` naming the message and field at fault."""
    conformed = [_message(message, form, f"messages[{index}]") for index, message in enumerate(messages)]
    is_developers = any(message["role"] == "developer" for message in conformed)
    return conformed if form.knows_developer or not is_developers else _with_one_system(conformed)


def shows_parts(text: str, messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a template that takes parts has written the list of them into ``text``, as some do for some roles."""
    texts = [
        part["text"] for message in messages if isinstance(message["content"], list) for part in message["content"]
    ]
    return bool(texts) and text.count(_SHOWN) > sum(each.count(_SHOWN) for each in texts)


def _message(message: Mapping[str, Any], form: ContentForm, where: str) -> dict[str, Any]:
    conformed = {name: value for name, value in message.items() if value is not None}
    if not isinstance(conformed.get("role"), str):
        raise InvalidRequest(f"{where}: needs a role, such as user")
    # Results of tools come as parts, too, and hardly any template has a loop over those.
    takes_parts = form.takes_parts and conformed["role"] != "tool"
    conformed["content"] = _content(message.get("content"), f"{where}.content", takes_parts=takes_parts)
    if conformed["role"] == "assistant":
        reasoning = conformed.get("reasoning", conformed.get("reasoning_content"))
        if reasoning is not None:
            conformed["reasoning"] = conformed["reasoning_content"] = reasoning
        calls = conformed.pop("tool_calls", [])
        if not isinstance(calls, list):
            raise InvalidRequest(f"{where}.tool_calls: must be a list")
        if calls:
            conformed["tool_calls"] = [_call(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(calls)]
    return conformed


def _content(content: Any, where: str, *, takes_parts: bool) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        content = [content]
    if not isinstance(content, list | None):
        raise InvalidRequest(f"{where}: must be text or a list of parts")
    texts = [_text(part, f"{where}[{at}]") for at, part in enumerate(content or ())]
    return _parts(*texts) if takes_parts else "\n".join(filter(None, texts))


def _parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def _text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in TEXT_KEYS:
        raise InvalidRequest(f"{where}: only parts of text are supported, such as {{'type': 'text', 'text': ...}}")
    text = part.get(TEXT_KEYS[kind])
    if not isinstance(text, str):
        raise InvalidRequest(f"{where}.{TEXT_KEYS[kind]}: must be text")
    return text


def _call(call: Any, where: str) -> dict[str, Any]:
    """A call whose arguments are an object, not a text that holds one."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"{where}.function: must be an object with a name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise InvalidRequest(f"{where}.function.arguments: is not valid JSON") from None
    if not isinstance(arguments, dict | None):
        raise InvalidRequest(f"{where}.function.arguments: must be a JSON object")
    return {**call, "function": {**function, "arguments": arguments or {}}}


def _with_one_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages of a developer are the system's; all of the system's are one, in front, as many templates want it."""
    of_system = [message for message in messages if message["role"] in ("system", "developer")]
    others = [message for message in messages if message["role"] not in ("system", "developer")]
    first = {name: value for name, value in of_system[0].items() if name != "tools"} | {"role": "system"}
    if len(of_system) > 1 or messages[0] is not of_system[0]:
        texts = [
            content if isinstance(content, str) else "\n".join(part["text"] for part in content)
            for content in (message["content"] for message in of_system)
        ]
        text = "\n\n".join(filter(None, texts))
        first["content"] = text if isinstance(first["content"], str) else _parts(text)
    return [first, *others]
