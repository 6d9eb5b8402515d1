"""Whatever is drawn by the grammar of calls is read as calls of the tools, in the form of each family."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from orcd.errors import InvalidRequest
from tests.worker.text.grammar.compilers import BYTE_LEVEL, allowed_ids, compiler_of, tokenizer_of
from worker.text.grammar.grammar_text import grammar_text
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.answer_parser import AnswerParser
from worker.text.tools.answer_parts import AnswerParts
from worker.text.tools.call_syntax import FUNCTOOLS, GEMMA4, GLM, HERMES, LLAMA3, MISTRAL, PHI4, QWEN_CODER, CallSyntax
from worker.text.tools.reasoning import ReasoningTags
from worker.text.tools.required.call_grammar import call_grammar

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"$ref": "#/$defs/unit"}},
    "required": ["city", "unit"],
    "additionalProperties": False,
    "$defs": {"unit": {"enum": ["°C", "°F"]}},
}
CLOCK = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"weather": WEATHER, "clock": CLOCK}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]


THINK = ReasoningTags("<think>", "</think>")


def drawn(grammar: str, seed: int, num_tokens: int = 400) -> str | None:
    """A text of random tokens by the grammar; None if it does not end in time."""
    tokenizer = tokenizer_of(BYTE_LEVEL)
    matcher = compiler_of(BYTE_LEVEL).compile(grammar)
    chance, ids = random.Random(seed), []
    for num_left in range(num_tokens, 0, -1):
        if matcher.is_complete:
            break
        allowed = allowed_ids(matcher, tokenizer.vocab_size, num_left)
        ends = set(allowed) & tokenizer.end_ids
        ids.append(matcher.take(ends.pop() if ends else chance.choice(allowed), num_left))
    return tokenizer.decode(ids, skip_special=True) if matcher.is_complete else None


def parts_of(text: str, form: AnswerForm, prompt_ids: list[int]) -> AnswerParts:
    parts = AnswerParts()
    parser = AnswerParser(form.with_tools(TOOLS), tokenizer_of(BYTE_LEVEL), prompt_ids)
    parser.feed(text, parts)
    parser.finish(parts)
    return parts


def calls_of(parts: AnswerParts) -> list[tuple[str, Any]]:
    """The calls, each with its arguments."""
    calls: dict[int, list[str]] = {}
    for delta in parts.calls:
        call = calls.setdefault(delta.index, ["", ""])
        call[0] += delta.name or ""
        call[1] += delta.arguments or ""
    return [(name, json.loads(arguments)) for name, arguments in calls.values()]


@pytest.mark.parametrize("syntax", [HERMES, LLAMA3, MISTRAL, PHI4, FUNCTOOLS, QWEN_CODER, GLM, GEMMA4])
def test_what_is_drawn_is_calls_and_nothing_else(syntax: CallSyntax) -> None:
    form = AnswerForm(syntax)
    grammar = call_grammar(form, TOOLS, tokenizer_of(BYTE_LEVEL), thinks=False)
    seen = set()
    for seed in range(12):
        text = drawn(grammar, seed)
        if text is None:
            continue
        parts = parts_of(text, form, [])
        assert parts.answer.strip() == "", text
        calls = calls_of(parts)
        assert calls
        for name, arguments in calls:
            jsonschema.validate(arguments, SCHEMAS[name])
            seen.add(name)
    assert seen == {"weather", "clock"}


@pytest.mark.parametrize("reasoning", [None, THINK])
@pytest.mark.parametrize("syntax", [HERMES, LLAMA3, MISTRAL, PHI4, FUNCTOOLS, QWEN_CODER, GLM, GEMMA4])
def test_a_document_may_stand_in_the_place_of_calls(syntax: CallSyntax, reasoning: ReasoningTags | None) -> None:
    form, tokenizer = AnswerForm(syntax, reasoning), tokenizer_of(BYTE_LEVEL)
    document = grammar_text("json_schema", WEATHER)
    grammar = call_grammar(form, TOOLS, tokenizer, thinks=False, document=document)
    kinds = set()
    for seed in range(16):
        text = drawn(grammar, seed)
        if text is None:
            continue
        parts = parts_of(text, form, [])
        calls = calls_of(parts)
        if not calls:
            jsonschema.validate(json.loads(parts.answer), WEATHER)
        kinds.add(bool(calls))
        assert not calls or parts.answer.strip() == ""
    assert kinds == {False, True}


@pytest.mark.parametrize("syntax", [HERMES, LLAMA3, MISTRAL, PHI4, FUNCTOOLS, QWEN_CODER, GLM, GEMMA4])
@pytest.mark.parametrize("text", ['{"city": "x"}', '{"name": "Ada"}', '{"name": "weather", "city": "x"}'])
def test_such_a_document_may_begin_as_a_call_does(syntax: CallSyntax, text: str) -> None:
    """Llama's calls are objects, too."""
    form, tokenizer = AnswerForm(syntax), tokenizer_of(BYTE_LEVEL)
    document = grammar_text("json_schema", {"properties": {"name": {"type": "string"}, "city": {"type": "string"}}})
    grammar = call_grammar(form, TOOLS, tokenizer, thinks=False, document=document)
    matcher = compiler_of(BYTE_LEVEL).compile(grammar)
    matcher.restore(tokenizer.encode(text, add_special=False), 1000)
    assert parts_of(text, form, []).answer == text


def test_only_the_tools_that_may_be_called_are() -> None:
    grammar = call_grammar(AnswerForm(HERMES), TOOLS[1:], tokenizer_of(BYTE_LEVEL), thinks=False)
    names = {
        name for seed in range(6) for name, _ in calls_of(parts_of(drawn(grammar, seed) or "", AnswerForm(HERMES), []))
    }
    assert names == {"clock"}


def test_a_model_that_thinks_may_do_so_before_it_calls() -> None:
    form = AnswerForm(HERMES, THINK)
    tokenizer = tokenizer_of(BYTE_LEVEL)
    for thinks, text in ((False, "<think>\nhm\n</think>\n\n"), (True, "\nhm\n</think>\n\n"), (False, "")):
        matcher = compiler_of(BYTE_LEVEL).compile(call_grammar(form, TOOLS, tokenizer, thinks=thinks))
        call = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
        matcher.restore(tokenizer.encode(text + call, add_special=False), 1000)
        assert set(allowed_ids(matcher, tokenizer.vocab_size)) & tokenizer.end_ids


@pytest.mark.parametrize("syntax", [QWEN_CODER, GLM, GEMMA4])
def test_a_text_that_may_be_left_out_can_be_written(syntax: CallSyntax) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}}]
    grammar = call_grammar(AnswerForm(syntax, THINK), tools, tokenizer_of(BYTE_LEVEL), thinks=False)
    text = {
        QWEN_CODER: "<tool_call>\n<function=f>\n<parameter=a>\nb < c\n</parameter>\n</function>\n</tool_call>",
        GLM: "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>b < c</arg_value>\n</tool_call>",
        GEMMA4: '<|tool_call>call:f{a:<|"|>b < c<|"|>}<tool_call|>',
    }[syntax]
    ids = tokenizer_of(BYTE_LEVEL).encode(f"<think>hm, {text}</think>\n{text}", add_special=False)
    matcher = compiler_of(BYTE_LEVEL).compile(grammar)
    assert [matcher.take(token_id, 1000 - place) for place, token_id in enumerate(ids)] == ids
    assert tokenizer_of(BYTE_LEVEL).end_ids.intersection(allowed_ids(matcher, tokenizer_of(BYTE_LEVEL).vocab_size))


def test_without_a_form_of_calls_nothing_can_be_asked_for() -> None:
    with pytest.raises(InvalidRequest, match=r"^tool_choice: the chat template"):
        call_grammar(AnswerForm(), TOOLS, tokenizer_of(BYTE_LEVEL), thinks=False)


@pytest.mark.parametrize(
    ("syntax", "parameters"),
    [
        *((syntax, {"properties": 5}) for syntax in (QWEN_CODER, GLM, GEMMA4)),
        *((syntax, {"properties": {"a": 5}}) for syntax in (QWEN_CODER, GLM)),
        (GEMMA4, {"properties": {"a": {"enum": 5}}}),
        (GEMMA4, {"properties": {"a": {"$ref": "#/$defs/b/c"}}}),
        (GEMMA4, {"properties": {"a": {"type": 5}}}),
    ],
)
def test_what_is_no_schema_is_named(syntax: CallSyntax, parameters: Any) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    with pytest.raises(InvalidRequest, match=r"^tools\[0\].function.parameters: must be a JSON schema"):
        call_grammar(AnswerForm(syntax), tools, tokenizer_of(BYTE_LEVEL), thinks=False)
