"""The prompt of a request with messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orcd.errors import InvalidRequest
from tests.models.files import SMALL
from tests.models.make_references import PROMPT
from tests.worker.text.vocabularies import tokenizer_of
from worker.model.gguf import open_gguf
from worker.text.chat import chat_prompt
from worker.text.chat.chat_prompt import Chat
from worker.text.chat.content_escape import ContentEscape
from worker.text.chat_template import ChatTemplate
from worker.text.process.text_process import LimitExceeded

PARTS: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": t} for t in ("a<e>", "b")]}]
LOOP = "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"


def render(source: str, chat: Chat, escape: ContentEscape | None = None) -> str:
    template = ChatTemplate(source)
    prompt = chat_prompt.render(chat, template.form, template, escape)
    return prompt.text.translate(prompt.stand_ins)


@pytest.mark.parametrize("name", SMALL)
def test_a_chats_first_message_becomes_the_ids_of_llama_cpp(name: str) -> None:
    metadata, words = open_gguf(SMALL[name]).metadata, tokenizer_of(name)
    template = ChatTemplate.from_metadata(metadata, words)
    with np.load(SMALL[name].with_suffix(".npz")) as reference:
        expected = reference["p1_ids"].tolist()
        assert ("p2_ids" in reference) == (template is not None)
    if template is not None:
        chat, escape = Chat([{"role": "user", "content": PROMPT}]), ContentEscape(words.control_texts)
        prompt = chat_prompt.render(chat, template.form, template, escape)
        ids = words.encode(prompt.text, add_special=False, parse_special=True, stand_ins=prompt.stand_ins or None)
        assert ids == expected


@pytest.mark.parametrize("escape", [None, ContentEscape(["<e>"])])
def test_a_template_gets_parts_or_text_and_text_where_it_writes_the_list(escape: ContentEscape | None) -> None:
    assert render(LOOP, Chat(PARTS), escape) == "a<e>b"
    assert render("{{ messages[0].content }}", Chat(PARTS), escape) == "a<e>\nb"
    assert render("{{ messages[0].content }}{% if false %}" + LOOP + "{% endif %}", Chat(PARTS), escape) == "a<e>\nb"


def test_a_template_that_takes_only_parts_gets_them_of_a_text() -> None:
    said = [{"role": "user", "content": text} for text in ("a", "", "b", None)]
    assert render(
        "{% for m in messages %}<{% for c in m.content %}{{ c.text }}.{% endfor %}{% endfor %}", Chat(said)
    ) == ("<a.<.<b.<")


def test_a_template_that_fails_at_parts_gets_text_and_one_that_fails_at_both_is_told_of_parts() -> None:
    source = "{{ messages[0].content + '' }}{% if false %}" + LOOP + "{% endif %}"
    assert render(source, Chat(PARTS)) == "a<e>\nb"
    source = "{{ raise_exception('text' if messages[0].content is string else 'parts') }}" + LOOP
    with pytest.raises(InvalidRequest, match=r"refuses them: parts$"):
        render(source, Chat(PARTS))


def test_a_limit_that_parts_exceed_is_not_tried_again_with_text() -> None:
    class Slow(ChatTemplate):
        num_calls = 0

        def render(self, *_args: Any, **_options: Any) -> str:
            self.num_calls += 1
            raise LimitExceeded("too slow")

    slow = Slow(LOOP)
    with pytest.raises(LimitExceeded):
        chat_prompt.render(Chat(PARTS), slow.form, slow, None)
    assert slow.num_calls == 1


def test_every_argument_reaches_the_template() -> None:
    source = "{{ tools[0].name }} {{ add_generation_prompt }} {{ effort }} {{ messages[0].content }}."
    chat = Chat([{"role": "assistant", "content": "hi"}], [{"name": "f"}], False, True, {"effort": "low"})
    assert render(source, chat) == "f False low hi"


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_a_variable_with_the_name_of_a_field_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^chat_template_kwargs: must not hold {name}"):
        render(LOOP, Chat(PARTS, variables={name: 1}))


@pytest.mark.parametrize("field", ["messages", "tools", "variables"])
def test_what_nests_too_deeply_is_the_caller_s_mistake(field: str) -> None:
    nested: Any = 1
    for _ in range(5000):
        nested = {"x": [nested]}
    fields: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "tools": None, "variables": None}
    fields[field] = {"x": nested} if field == "variables" else [{"role": "user", "content": "a", "x": nested}]
    with pytest.raises(InvalidRequest, match="messages, tools or chat_template_kwargs are nested too deeply"):
        render("{{ messages[0].content }}", Chat(**fields), ContentEscape(["<e>"]))
