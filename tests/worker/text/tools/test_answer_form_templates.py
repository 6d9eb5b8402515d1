"""What published chat templates write as calls is read as those calls: a conversation with tools goes round."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from orcd.events import tool_call_id
from tests.worker.text.vocabularies import HARMONY, KIT, bpe_metadata, needs_kit
from worker.text import tokenizer
from worker.text.chat.chat_prompt import Chat, render
from worker.text.chat_template import ChatTemplate
from worker.text.detokenizer import Detokenizer
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.answer_parts import CallDelta

CONTROL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[CALL_ID]",
    "[ARGS]",
)
BYTES = tokenizer.from_metadata(bpe_metadata("a b", control=CONTROL))
OF_GEMMA = tokenizer.from_metadata(bpe_metadata("a b", control=("<turn|>", "<|tool_response>", '<|"|>')))
OF_GLM = tokenizer.from_metadata(bpe_metadata("a b", control=("<|user|>", "<|observation|>")))
OF_GPT_OSS = tokenizer.from_metadata(bpe_metadata("a b", control=HARMONY))
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": "d", "parameters": {"type": "object", "properties": parameters}},
    }
    for name, parameters in {
        "weather": {"city": {"type": "string"}, "days": {"type": "array"}},
        "time": {"zone": {"type": "object"}},
    }.items()
]
ARGUMENTS = ['{"city": "Zürich ☔", "days": [1, 2]}', '{"zone": {"name": "}"}}']
ASKED: dict[str, Any] = {"role": "user", "content": "Rain?"}


def called(num_calls: int) -> dict[str, Any]:
    """A message of the assistant with calls of the two tools, as OpenAI's clients send it."""
    names = ["weather", "time"]
    calls = [
        {"id": tool_call_id("j", 0, at), "type": "function", "function": {"name": name, "arguments": ARGUMENTS[at]}}
        for at, name in enumerate(names[:num_calls])
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


@functools.cache
def template_of(name: str) -> ChatTemplate:
    kit = json.loads((KIT / f"{name}.json").read_text())
    return ChatTemplate(kit["template"], **{"bos_token": "", "eos_token": "", **kit["special_tokens"]})


def prompt(template: ChatTemplate, *messages: dict[str, Any], **fields: Any) -> str:
    # Without thinking Gemma 4's prompt has an empty thought behind it, which is not written into history.
    fields = {"variables": {"enable_thinking": "<|channel>" in template.source}, **fields}
    return render(Chat(messages, TOOLS, **fields), template.form, template, None).text


@needs_kit
@pytest.mark.parametrize(
    ("name", "num_calls"),
    [
        ("chat_templates/qwen2.5", 2),
        ("chat_templates/gpt-oss", 1),
        ("2026/chat_templates/llama-3.2", 1),
        ("2026/chat_templates/mistral-small-3.2", 2),
        ("2026/chat_templates/qwen3.5", 2),
        ("2026/chat_templates/gemma-4", 2),
        ("2026/chat_templates/glm-4.6", 2),
    ],
)
def test_what_a_template_writes_as_calls_is_read_as_them(name: str, num_calls: int) -> None:
    template = template_of(name)
    subject = {"gpt-oss": OF_GPT_OSS, "gemma-4": OF_GEMMA, "glm-4.6": OF_GLM}.get(name.rpartition("/")[2], BYTES)
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "dry"} for call in called(num_calls)["tool_calls"]
    ]
    before = prompt(template, ASKED)
    whole = prompt(template, ASKED, called(num_calls), add_generation_prompt=False)
    answered = prompt(template, ASKED, called(num_calls), *results, {"role": "assistant", "content": "No rain."})
    assert whole.startswith(before)
    assert answered.startswith(whole.rstrip()) and "dry" in answered and "No rain." in answered
    # GLM's turn ends with the token that begins the turn of the results.
    answer = subject.encode(answered[len(before) :], parse_special=True)
    end = next(place for place, token_id in enumerate(answer) if token_id in subject.end_ids)
    prompt_ids = subject.encode(before, parse_special=True)
    detokenizer = Detokenizer(subject, prompt_ids=prompt_ids, form=AnswerForm.of(template.source).with_tools(TOOLS))
    delta = detokenizer.feed(answer[: end + 1])
    assert (delta.text, delta.analysis, delta.commentary) == ("", "", "")
    found = [CallDelta(call.index, call.name, json.loads(call.arguments)) for call in delta.calls]
    names = ["weather", "time"]
    assert found == [CallDelta(at, names[at], json.loads(ARGUMENTS[at])) for at in range(num_calls)]
