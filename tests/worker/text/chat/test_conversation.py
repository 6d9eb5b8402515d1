"""Messages in the form of their template: the prompts are those that vLLM's normalisation gives."""

from __future__ import annotations

import datetime
import functools
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import pytest

from orcd.errors import InvalidRequest
from tests.worker.text.chat.normalisation import CONVERSATIONS, TOOLS, normalised
from tests.worker.text.vocabularies import KIT
from worker.text.chat import chat_prompt
from worker.text.chat.chat_prompt import Chat
from worker.text.chat.content_form import ContentForm
from worker.text.chat.conversation import conform, shows_parts
from worker.text.chat_template import ChatTemplate

TEXT, PARTS = ContentForm(False, True), ContentForm(True, True)
NOW = datetime.datetime(2025, 1, 2, 3, 4, 5)

_CALLS = "{% for c in m.tool_calls or [] %}({{ c.function.name }} {{ c.function.arguments | tojson }}){% endfor %}"
OWN = {
    "text": "{% for m in messages %}<{{ m.role }}>{{ m.content }}" + _CALLS + "{% endfor %}",
    "parts": "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}" + _CALLS + "{% endfor %}",
    "only parts": "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}" + _CALLS + "{% endfor %}",
    "not of all": "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% elif m.role == 'system' %}"
    "{{ m.content + '' }}{% else %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}{% endfor %}",
    "items": "{% for m in messages %}{{ m.content | trim }}{% for c in m.tool_calls or [] %}"
    "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}{% endfor %}{% endfor %}",
}
"""Small templates, so that a clone without the kit tests the rule, too."""


def _templates() -> dict[str, tuple[str, dict[str, str]]]:
    found = {name: (source, {"bos_token": "<s>", "eos_token": "</s>"}) for name, source in OWN.items()}
    for path in sorted(Path(KIT).glob("**/chat_templates/*.json")):
        kit = json.loads(path.read_text())
        found[path.stem] = kit["template"], kit["special_tokens"]
    return found


TEMPLATES = _templates()


@functools.cache
def _template(name: str) -> ChatTemplate:
    """One of `TEMPLATES`, compiled once for all conversations."""
    source, special = TEMPLATES[name]
    return ChatTemplate(source, **special, now=lambda: NOW)


@functools.cache
def _jinja(source: str) -> jinja2.Template:
    """A template compiled by Jinja alone, set up as Hugging Face's transformers do."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    # Transformers has a tag for what an assistant wrote, which only training looks at: a block with a scope of its own.
    source = re.sub(r"({%-?\s*)(end)?generation(\s*-?%})", r"\1\2with\3", source)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
    environment.globals |= {"raise_exception": refuse, "strftime_now": NOW.strftime}
    return environment.from_string(source)


def _expected(source: str, parts: bool, messages: list[dict[str, Any]], **names: Any) -> str | None:
    """By vLLM's rule; with text for a template that fails at parts or writes the list of them. None: it fails."""
    for takes_parts in (True, False) if parts else (False,):
        with suppress(Exception):
            text = _jinja(source).render(messages=normalised(messages, parts=takes_parts), **names)
            if "{'type': 'text'" not in text:
                return text
    return None


@pytest.mark.skipif(not KIT.exists(), reason="the conformance kit ../shared/conformance is not here")
def test_the_kit_has_templates() -> None:
    assert len(TEMPLATES) >= len(OWN) + 14


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["", "tools"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_vllms_normalisation_and_jinja(
    name: str, conversation: str, tools: list[dict[str, Any]] | None
) -> None:
    source, special = TEMPLATES[name]
    template = _template(name)
    messages = CONVERSATIONS[conversation]
    names = {**special, "tools": tools, "documents": None, "add_generation_prompt": True}
    expected = _expected(source, template.form.takes_parts, messages, **names)
    chat = Chat(messages, tools)
    if expected is None:
        with pytest.raises(InvalidRequest):
            chat_prompt.render(chat, template.form, template, None)
    else:
        assert chat_prompt.render(chat, template.form, template, None).text == expected


def _conformed(message: dict[str, Any], form: ContentForm = TEXT) -> dict[str, Any]:
    [conformed] = conform([message], form)
    return conformed


def test_nulls_are_as_absent_and_further_fields_are_kept() -> None:
    message = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None, "thinking": "hm"}
    assert _conformed(message) == {"role": "assistant", "content": "x", "thinking": "hm"}


def test_parts_of_every_kind_of_text_are_text() -> None:
    kinds = [
        {"type": "input_text", "text": "a"},
        {"type": "refusal", "refusal": "b"},
        "c",
        {"type": "text", "text": ""},
    ]
    assert _conformed({"role": "user", "content": kinds})["content"] == "a\nb\nc"
    assert _conformed({"role": "user", "content": kinds}, PARTS)["content"] == [
        {"type": "text", "text": text} for text in ("a", "b", "c", "")
    ]


def test_reasoning_has_both_names() -> None:
    for name in ("reasoning", "reasoning_content"):
        message = _conformed({"role": "assistant", "content": "x", name: "hm"})
        assert message["reasoning"] == message["reasoning_content"] == "hm"


def test_the_callers_messages_are_left_as_they_are() -> None:
    messages = CONVERSATIONS["tool call with text"]
    before = json.dumps(messages)
    conform(messages, PARTS)
    assert json.dumps(messages) == before


def test_a_developer_is_the_system_where_a_template_knows_none() -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "developer", "content": "be brief"},
        {"role": "system", "content": [{"type": "text", "text": "be kind"}]},
    ]
    assert [message["role"] for message in conform(messages, TEXT)] == ["user", "developer", "system"]
    for takes_parts in (False, True):
        assert conform(messages, ContentForm(takes_parts, False)) == [
            {"role": "system", "content": _in_form("be brief\n\nbe kind", takes_parts)},
            {"role": "user", "content": _in_form("hi", takes_parts)},
        ]


def _in_form(text: str, takes_parts: bool) -> Any:
    return [{"type": "text", "text": text}] if takes_parts else text


CALL: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def _called(**function: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [CALL, {**CALL, "function": {**CALL["function"], **function}}]}


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"content": "x"}, "messages[1]: needs a role"),
        ({"role": "user", "content": 5}, "messages[1].content: must be text or a list of parts"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, [1]]},
            "messages[1].content[1]: only parts of text",
        ),
        ({"role": "user", "content": [{"type": ["text"]}]}, "messages[1].content[0]: only parts of text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[1].content[0]: only parts of text"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "messages[1].content[0].text: must be text"),
        ({"role": "assistant", "tool_calls": {}}, "messages[1].tool_calls: must be a list"),
        (
            {"role": "assistant", "tool_calls": [{}]},
            "messages[1].tool_calls[0].function: must be an object with a name",
        ),
        (_called(name=None), "messages[1].tool_calls[1].function: must be an object with a name"),
        (_called(arguments="{"), "messages[1].tool_calls[1].function.arguments: is not valid JSON"),
        (_called(arguments="[" * 100_000), "messages[1].tool_calls[1].function.arguments: is not valid JSON"),
        (_called(arguments="5"), "messages[1].tool_calls[1].function.arguments: must be a JSON object"),
    ],
)
def test_what_cannot_be_used_is_named_by_message_and_field(message: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        conform([{"role": "user", "content": "hi"}, message], TEXT)
    assert caught.value.message.startswith(said)


def test_a_list_of_parts_in_a_prompt_is_seen_and_text_about_one_is_not() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert shows_parts(f"<user>{parts[0]['content']}", parts)
    assert not shows_parts("<user>ab", parts)
    quoted = [{"role": "user", "content": [{"type": "text", "text": str(parts[0]["content"])}]}]
    assert not shows_parts(f"<user>{parts[0]['content']}", quoted)
    assert shows_parts(f"<user>{quoted[0]['content']}", quoted)
    assert not shows_parts("[{'type': 'text', 'text': 'a'}]", [{"role": "user", "content": "x"}])
