"""Chat templates: the conformance kit to the byte, Hugging Face's environment, and limits on what a template can do."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from orcd.errors import InvalidRequest, ModelLoadFailed
from tests.worker.text.vocabularies import KIT, bpe_metadata, needs_kit
from worker.text import tokenizer
from worker.text.chat_template import ChatTemplate

HI = [{"role": "user", "content": "Hi"}]
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"


def render(source: str, messages: list[Any] = HI, **arguments: Any) -> str:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(messages, **arguments)


@needs_kit
@pytest.mark.parametrize(
    "path", [*KIT.glob("chat_templates/*.json"), *KIT.glob("2026/chat_templates/*.json")], ids=lambda path: path.stem
)
def test_every_case_of_the_kit_is_met(path: Path) -> None:
    kit = json.loads(path.read_text())
    clock = datetime.datetime(2025, 1, 2, 3, 4, 5)
    template = ChatTemplate(kit["template"], **kit["special_tokens"], now=lambda: clock)
    for case in kit["cases"]:
        arguments = {
            "tools": case["tools"],
            "add_generation_prompt": case["add_generation_prompt"],
            "variables": case["extra_template_variables"],
        }
        if case["error"] is None:
            assert template.render(case["messages"], **arguments) == case["rendered"], case["name"]
        else:
            with pytest.raises(InvalidRequest):
                template.render(case["messages"], **arguments)


def test_a_template_comes_from_the_models_metadata() -> None:
    metadata = bpe_metadata("a b", eos_token_id=257)
    words = tokenizer.from_metadata(metadata)
    assert ChatTemplate.from_metadata(metadata, words) is None
    template = ChatTemplate.from_metadata(
        {**metadata, "tokenizer.chat_template": "[{{ eos_token }}{{ bos_token }}]"}, words
    )
    assert template is not None
    assert template.render(HI) == "[<|im_end|>]"
    with pytest.raises(ModelLoadFailed, match=r"tokenizer\.chat_template must be a string"):
        ChatTemplate.from_metadata({"tokenizer.chat_template": 5}, words)


@pytest.mark.parametrize("end", ["", "\n", "  ", "\n  ", "{% if true %}x{% endif %}\n"])
@pytest.mark.parametrize("start", ["", "\n", "  ", "{% set name = 'n' %}\n"])
def test_a_file_may_have_a_template_of_its_own_for_requests_with_tools(start: str, end: str) -> None:
    plain, with_tools = f"{start}plain {{{{ name }}}}{end}", f"{start}{{{{ tools }}}}{end}"
    both = {"tokenizer.chat_template": plain, "tokenizer.chat_template.tool_use": with_tools}
    metadata = bpe_metadata("a b") | both
    template = ChatTemplate.from_metadata(metadata, tokenizer.from_metadata(metadata))
    assert template is not None
    tools = [{"type": "function"}]
    assert template.render([]) == ChatTemplate(plain).render([])
    assert template.render([], tools=tools) == ChatTemplate(with_tools).render([], tools=tools)
    with pytest.raises(ModelLoadFailed, match="must be a string"):
        ChatTemplate.from_metadata(
            metadata | {"tokenizer.chat_template.tool_use": 1}, tokenizer.from_metadata(metadata)
        )


@pytest.mark.parametrize("source", ["{% if %}", "{{ 1 + }}", "{% for m in messages %}", "{% unknown %}"])
def test_what_is_no_template_is_found_when_the_model_loads(source: str) -> None:
    with pytest.raises(ModelLoadFailed, match=r"tokenizer\.chat_template"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "<s>Hi</s>"),
        ("{% if add_generation_prompt %}go{% endif %}", "go"),
        ("{% if tools is none and documents is none %}none{% endif %}", "none"),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),  # trim_blocks and lstrip_blocks
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "Hi!"),
        ("{{ {'ü': '<&>', 'a': [1, none]} | tojson }}", '{"ü": "<&>", "a": [1, null]}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{{ {'b': 1, 'a': 'ü'} | tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}",
         '{"a":"\\u00fc","b":1}'),
        ("{{ name }}{{ missing }}", "given"),
        ("{{ 'a' ~ 1 ~ none ~ 'b' }}", "a1Noneb"),
    ],
)  # fmt: skip
def test_templates_are_rendered_as_in_transformers(source: str, text: str) -> None:
    assert render(source, variables={"name": "given"}) == text


def test_the_clock_is_read_when_rendering() -> None:
    today = datetime.datetime.now().strftime("%Y")
    assert render("{{ strftime_now('%Y') }}") == today


def test_what_the_template_says_reaches_the_caller() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_errors_of_python_code_do_not_quote_the_messages() -> None:
    with pytest.raises(InvalidRequest) as caught:
        render("{{ none[messages[0].content].x }}", [{"content": "canary"}])
    assert "canary" not in str(caught.value)


def test_a_variable_cannot_replace_a_field() -> None:
    with pytest.raises(InvalidRequest, match="'messages'"):
        render(CHAT, variables={"messages": []})


def test_the_last_message_can_be_left_open() -> None:
    messages = [*HI, {"role": "assistant", "content": "I am "}]
    arguments: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    assert render(CHAT, messages, **arguments) == "<user>Hi</user>\n<assistant>I am "
    assert render(CHAT.replace("m.content", "m.content | trim"), messages, **arguments).endswith("<assistant>I am")
    blocks = [{"role": "assistant", "content": [{"type": "text", "text": "I am"}]}]
    source = "{{ messages[0].content[0].text }}</end>"
    assert render(source, blocks, **arguments) == "I am"
    assert messages[1]["content"] == "I am "  # the caller's list is as it was


@pytest.mark.parametrize(
    ("source", "messages", "add_generation_prompt"),
    [(CHAT, HI, True), (CHAT, [], False), (CHAT, [{"role": "user", "content": None}], False), ("constant", HI, False)],
)
def test_a_message_that_cannot_be_left_open_is_an_error(
    source: str, messages: list[Any], add_generation_prompt: bool
) -> None:
    with pytest.raises(InvalidRequest, match="continue_final_message"):
        render(source, messages, add_generation_prompt=add_generation_prompt, continue_final_message=True)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ (messages | map(attribute='__class__') | list)[0].mro() }}",
        "{{ range(99999999) }}",
        "{% include 'file' %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_the_sandbox_refuses(source: str) -> None:
    with pytest.raises(InvalidRequest):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ 'x' * 10**9 }}",
        "{{ 10**9 * 'x' }}",
        "{{ ([1] * 10**9) | length }}",
        "{{ 10 ** (10 ** 9) }}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    ],
)
def test_a_template_that_writes_without_end_is_stopped(source: str) -> None:
    with pytest.raises(InvalidRequest, match="longer than"):
        render(source)


@pytest.mark.parametrize(
    "source", ["{{ '%09999999999d' % 1 }}", "{{ 'a'.rjust(10 ** 11) }}", "{{ 9 * [[9]] * 10**9 }}"]
)
def test_nothing_is_computed_before_there_are_messages(source: str) -> None:
    """F16: a worker compiles the template in its own process, where nothing limits what that takes."""
    ChatTemplate(source)
