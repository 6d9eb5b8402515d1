"""The prompt of a request with messages."""

from __future__ import annotations

from typing import Any

import pytest

from orcd.errors import InvalidRequest
from worker.text.chat import chat_prompt
from worker.text.chat.chat_prompt import Chat
from worker.text.chat.content_escape import ContentEscape
from worker.text.chat_template import ChatTemplate

PARTS: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": t} for t in ("a<e>", "b")]}]
LOOP = "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"


def render(source: str, chat: Chat, escape: ContentEscape | None = None) -> str:
    template = ChatTemplate(source)
    prompt = chat_prompt.render(chat, template.form, template, escape)
    return prompt.text.translate(prompt.stand_ins)


@pytest.mark.parametrize("escape", [None, ContentEscape(["<e>"])])
def test_a_template_gets_parts_or_text_and_text_where_it_writes_the_list(escape: ContentEscape | None) -> None:
    assert render(LOOP, Chat(PARTS), escape) == "a<e>b"
    assert render("{{ messages[0].content }}", Chat(PARTS), escape) == "a<e>\nb"
    assert render("{{ messages[0].content }}{% if false %}" + LOOP + "{% endif %}", Chat(PARTS), escape) == "a<e>\nb"


def test_every_argument_reaches_the_template() -> None:
    source = "{{ tools[0].name }} {{ add_generation_prompt }} {{ effort }} {{ messages[0].content }}."
    chat = Chat([{"role": "assistant", "content": "hi"}], [{"name": "f"}], False, True, {"effort": "low"})
    assert render(source, chat) == "f False low hi"


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_a_variable_with_the_name_of_a_field_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^chat_template_kwargs: must not hold {name}"):
        render(LOOP, Chat(PARTS, variables={name: 1}))
