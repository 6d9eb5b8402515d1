"""The prompt that messages become: they are in the template's form, and all control tokens are the template's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from orcd.errors import InvalidRequest
from worker.text.chat.content_escape import ContentEscape
from worker.text.chat.content_form import ContentForm
from worker.text.chat.conversation import conform, shows_parts
from worker.text.chat.system_tools import Renderer, SystemTools
from worker.text.process.text_process import LimitExceeded

_FIXED = ("messages", "tools", "add_generation_prompt")


class Chat(msgspec.Struct, frozen=True):
    """What of a request the chat template is given."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: Mapping[str, Any] | None = None

    def render(self, renderer: Renderer) -> str:
        """The prompt's text."""
        return renderer.render(
            self.messages,
            tools=self.tools,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            variables=self.variables,
        )


class ChatPrompt(msgspec.Struct, frozen=True):
    """A rendered prompt, to be encoded with these ``stand_ins`` (see `worker.text.chat.content_escape`)."""

    text: str
    stand_ins: Mapping[int, str]


def render(chat: Chat, form: ContentForm, renderer: Renderer, escape: ContentEscape | None) -> ChatPrompt:
    """Render the messages of a request; with ``escape`` nothing that they spell becomes a control token.

    Raises `InvalidRequest` naming the field.
    """
    for name in _FIXED:
        if name in (chat.variables or {}):
            raise InvalidRequest(f"chat_template_kwargs: must not hold {name}, which is a field of its own")
    as_text = replace(chat, messages=conform(chat.messages, replace(form, takes_parts=False)))
    if form.has_system_tools:
        return _escaped(as_text, SystemTools(renderer), escape)
    if not form.takes_parts:
        return _escaped(as_text, renderer, escape)
    as_parts = replace(chat, messages=conform(chat.messages, form))
    try:
        prompt = _escaped(as_parts, renderer, escape)
    except LimitExceeded:
        raise
    except InvalidRequest as error:  # some templates take parts of some roles only
        try:
            return _escaped(as_text, renderer, escape)
        except InvalidRequest:
            raise error from None
    is_shown = shows_parts(prompt.text.translate(prompt.stand_ins), as_parts.messages)
    return _escaped(as_text, renderer, escape) if is_shown else prompt


def _escaped(chat: Chat, renderer: Renderer, escape: ContentEscape | None) -> ChatPrompt:
    if escape is None:
        return ChatPrompt(chat.render(renderer), {})
    given = [list(chat.messages), chat.tools, chat.variables]
    try:
        stand_ins = escape.stand_ins(*given)
        hidden = [escape.hide(value, stand_ins) for value in given]
        all_hidden = [escape.hide_all(value, stand_ins) for value in hidden]
    except RecursionError:
        raise InvalidRequest("messages, tools or chat_template_kwargs are nested too deeply") from None
    text = _rendered(chat, hidden, renderer, stand_ins)
    if hidden != all_hidden:
        safe = _rendered(chat, all_hidden, renderer, stand_ins)
        if escape.spelt(text) != escape.spelt(safe):
            text = safe
    return ChatPrompt(text, stand_ins)


def _rendered(chat: Chat, given: Sequence[Any], renderer: Renderer, stand_ins: Mapping[int, str]) -> str:
    messages, tools, variables = given
    text = replace(chat, messages=messages, tools=tools, variables=variables).render(renderer)
    for code in stand_ins:  # a template may have JSON written in ASCII
        text = text.replace(json.dumps(chr(code))[1:-1], chr(code))
    return text
