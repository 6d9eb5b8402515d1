"""What vLLM's chat API does to messages before a template gets them, written down for texts, to compare with."""

from __future__ import annotations

import json
from typing import Any


def normalised(messages: list[dict[str, Any]], *, parts: bool) -> list[dict[str, Any]]:
    """``parts``: the template has the "openai" content format, else "string"."""
    done = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):  # an empty text, too, is a part; only null is none
            content = [{"type": "text", "text": content}]
        texts = [part if isinstance(part, str) else part["text"] for part in content or []]
        new: dict[str, Any] = {"role": message["role"]}
        if parts and message["role"] != "tool":
            new["content"] = [{"type": "text", "text": text} for text in texts]
        else:
            new["content"] = "\n".join(text for text in texts if text)
        if message["role"] == "assistant" and message.get("tool_calls"):
            new["tool_calls"] = [_call(call) for call in message["tool_calls"]]
        if message["role"] == "assistant" and message.get("reasoning"):
            new["reasoning"] = new["reasoning_content"] = message["reasoning"]
        for name in ("name", "tool_call_id"):
            if name in message:
                new[name] = message[name]
        done.append(new)
    return done


def _call(call: dict[str, Any]) -> dict[str, Any]:
    arguments = call["function"].get("arguments") or {}
    parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    return {**call, "function": {**call["function"], "arguments": parsed}}


def _calls(*names: str) -> list[dict[str, Any]]:
    arguments = json.dumps({"city": "Oslo", "days": 3, "units": ["C", "mm"]})
    return [
        {"id": f"call{place:05}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for place, name in enumerate(names)
    ]


def _text(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


_ASKED: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather?"}]
_ANSWER: dict[str, Any] = {"role": "tool", "tool_call_id": "call00000", "name": "weather", "content": "rain"}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "text": [*_ASKED, {"role": "assistant", "content": "Rain."}, {"role": "user", "content": "And then?"}],
    "system": [{"role": "system", "content": "Be brief."}, *_ASKED],
    "parts": [{"role": "user", "content": _text("One", "two")}],
    "parts of all": [
        {"role": "system", "content": _text("Be brief.")},
        {"role": "user", "content": _text("One", "two")},
        {"role": "assistant", "content": _text("Three")},
        {"role": "user", "content": _text("four")},
    ],
    "no text": [{"role": "user", "content": ""}],
    "tool call": [*_ASKED, {"role": "assistant", "content": None, "tool_calls": _calls("weather")}, _ANSWER],
    "tool call with text": [
        *_ASKED,
        {"role": "assistant", "content": "I look.", "tool_calls": _calls("weather")},
        {**_ANSWER, "content": _text("rain", "and wind")},
        {"role": "assistant", "content": "Rain and wind."},
        {"role": "user", "content": "Thanks."},
    ],
    "no arguments": [
        *_ASKED,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call00000", "type": "function", "function": {"name": "weather", "arguments": ""}}],
        },
        _ANSWER,
    ],
    "no calls": [
        *_ASKED,
        {"role": "assistant", "content": "Rain.", "tool_calls": []},
        {"role": "user", "content": "?"},
    ],
    "reasoning": [
        *_ASKED,
        {"role": "assistant", "content": "Rain.", "reasoning": "hm"},
        {"role": "user", "content": "?"},
    ],
}
"""Messages as clients send them."""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
