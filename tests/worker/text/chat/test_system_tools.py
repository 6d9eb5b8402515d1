"""Tools, calls and results under a template that has them in messages."""

from __future__ import annotations

from typing import Any

from tests.worker.text.vocabularies import bpe_metadata
from worker.text import tokenizer
from worker.text.chat.chat_prompt import Chat, render
from worker.text.chat.content_escape import ContentEscape
from worker.text.chat_template import ChatTemplate
from worker.text.detokenizer import Detokenizer
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.answer_parts import CallDelta

TEMPLATE = ChatTemplate(
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if 'tools' in m %}{{ '<|tool|>' + m['tools'] + '<|/tool|>' }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTROL = ("<|end|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>")
SUBJECT = tokenizer.from_metadata(bpe_metadata("a b", control=CONTROL))
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<|end|>é"}}]
ASKED: dict[str, Any] = {"role": "user", "content": "x"}
CALLED: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "<|end|>"}'}},
        {"id": "2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ],
}


def prompt(*messages: dict[str, Any], tools: Any = None, escape: ContentEscape | None = None) -> str:
    made = render(Chat(messages, tools), TEMPLATE.form, TEMPLATE, escape)
    return made.text.translate(made.stand_ins)


def test_tools_are_a_text_in_the_message_of_the_system() -> None:
    listed = '[{"name": "f", "description": "<|end|>é"}]'
    expected = f"<|tool|>{listed}<|/tool|><|end|><|user|>x<|end|><|assistant|>"
    assert prompt({"role": "system", "content": "s"}, ASKED, tools=TOOLS) == f"<|system|>s{expected}"
    assert prompt(ASKED, tools=TOOLS) == f"<|system|>{expected}"
    assert prompt(ASKED) == "<|user|>x<|end|><|assistant|>"


def test_calls_and_their_results_are_written_as_the_model_writes_and_reads_them() -> None:
    calls = '[{"name": "f", "arguments": {"a": "<|end|>"}}, {"name": "g", "arguments": {}}]'
    assert prompt(ASKED, CALLED, {"role": "tool", "tool_call_id": "1", "content": "ok"}) == (
        f"<|user|>x<|end|><|assistant|><|tool_call|>{calls}<|/tool_call|><|end|><|tool_response|>ok<|end|><|assistant|>"
    )


def test_what_a_template_is_given_as_a_call_is_read_as_that_call_and_texts_in_it_stay_text() -> None:
    made = render(Chat([CALLED], add_generation_prompt=False), TEMPLATE.form, TEMPLATE, ContentEscape(CONTROL))
    ids = SUBJECT.encode(made.text, parse_special=True, stand_ins=made.stand_ins)
    assert [SUBJECT.token_text(token) for token in ids if SUBJECT.is_special(token)] == [
        "<|assistant|>",
        "<|tool_call|>",
        "<|/tool_call|>",
        "<|end|>",
    ]
    form = AnswerForm.of(TEMPLATE.source).with_tools(TOOLS)
    delta = Detokenizer(SUBJECT, form=form).feed(ids)
    assert (delta.text, delta.calls) == ("", (CallDelta(0, "f", '{"a": "<|end|>"}'), CallDelta(1, "g", "{}")))
