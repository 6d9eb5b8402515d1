"""Tools and calls for templates that know neither, but have room for them in messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from worker.text.tools.call_syntax import PHI4


class Renderer(Protocol):
    """Whoever runs the chat template."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """See `worker.text.chat_template.ChatTemplate.render`."""


class SystemTools:
    """Renders by a template as Phi-4-mini's, which takes tools as a text in the field ``tools`` of a system message.

    It writes the content of any message behind the message's role, and nothing else. So a call becomes content in the
    form in which the model writes it, and its result is a message of the role ``tool_response``, whose token the model
    knows. This happens after texts of messages were escaped: the markers around calls are control tokens.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """See `worker.text.chat_template.ChatTemplate.render`."""
        messages = [_message(message) for message in messages]
        if tools:
            system, others = messages[:1], messages[1:]
            if not system or system[0].get("role") != "system":
                system, others = [{"role": "system", "content": ""}], messages
            functions = [tool.get("function", tool) for tool in tools]
            messages = [{**system[0], "tools": json.dumps(functions, ensure_ascii=False)}, *others]
        return self._renderer.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
        )


def _message(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if message.get("role") == "tool":
        return {**message, "role": "tool_response"}
    if not message.get("tool_calls"):
        return message
    calls = [{name: call["function"][name] for name in ("name", "arguments")} for call in message["tool_calls"]]
    text = PHI4.opens[0] + json.dumps(calls, ensure_ascii=False) + PHI4.close
    return {**message, "content": message["content"] + text}
