"""Whatever is drawn in GPT-OSS's channels is a document, or a call of a tool, behind what the model thinks."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from orcd.errors import InvalidRequest
from tests.worker.text.grammar.compilers import allowed_ids, compiler_of, tokenizer_of
from worker.text.detokenizer import Detokenizer, TextDelta
from worker.text.grammar.grammar_text import grammar_text
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.required.harmony_grammar import harmony_answer, harmony_calls

MODEL = "gpt-oss-mxfp4_moe"
TOKENIZER = tokenizer_of(MODEL)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"greet": PERSON, "clock": NOTHING}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]
ASKED = "<|start|>user<|message|>Hi<|end|><|start|>assistant"
THINKING = f"{ASKED}<|channel|>analysis<|message|>Well"
ANSWERING = f"{ASKED}<|channel|>final<|message|>"


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special=False, parse_special=True)


def drawn(grammar: str, prompt: str, spare: int, seed: int, form: AnswerForm) -> TextDelta:
    """An answer of random tokens, with so many more than the grammar says it takes, as its reader sees it."""
    matcher, chance = compiler_of(MODEL).compile(grammar), random.Random(seed)
    least = matcher.min_tokens()
    assert least is not None
    ids: list[int] = []
    for num_left in range(least + spare, 0, -1):
        if matcher.is_complete:
            break
        allowed = allowed_ids(matcher, TOKENIZER.vocab_size, num_left)
        ids.append(matcher.take(chance.choice(allowed), num_left))
    detokenizer = Detokenizer(TOKENIZER, [], prompt_ids=ids_of(prompt), form=form)
    deltas = [detokenizer.feed(ids), detokenizer.finish()]
    text, analysis = ("".join(getattr(delta, name) for delta in deltas) for name in ("text", "analysis"))
    return TextDelta(text, len(ids), analysis=analysis, calls=tuple(call for delta in deltas for call in delta.calls))


@pytest.mark.parametrize("prompt", [ASKED, THINKING, ANSWERING])
@pytest.mark.parametrize("spare", [0, 3, 40, 150])
def test_a_document_is_whole_in_the_final_message_however_few_tokens_there_are(prompt: str, spare: int) -> None:
    grammar = harmony_answer(grammar_text("json_schema", PERSON), TOKENIZER, ids_of(prompt))
    thoughts = 0
    for seed in range(6):
        answer = drawn(grammar, prompt, spare, seed, AnswerForm())
        jsonschema.validate(json.loads(answer.text), PERSON)
        thoughts += bool(answer.analysis)
    assert not thoughts if prompt == ANSWERING else thoughts or spare < 40


@pytest.mark.parametrize("prompt", [ASKED, THINKING, ANSWERING])
def test_a_call_may_stand_in_the_place_of_the_document(prompt: str) -> None:
    grammar = harmony_answer(grammar_text("json_schema", PERSON), TOKENIZER, ids_of(prompt), TOOLS)
    kinds = set()
    for seed in range(12):
        answer = drawn(grammar, prompt, 120, seed, AnswerForm().with_tools(TOOLS))
        kinds.add(bool(answer.calls))
        if answer.calls:
            name = "".join(call.name for call in answer.calls)
            jsonschema.validate(json.loads("".join(call.arguments for call in answer.calls)), SCHEMAS[name])
        else:
            jsonschema.validate(json.loads(answer.text), PERSON)
    assert kinds == ({False} if prompt == ANSWERING else {False, True})


@pytest.mark.parametrize("prompt", [ASKED, THINKING])
@pytest.mark.parametrize("spare", [0, 3, 120])
def test_a_call_is_one_of_the_tools_with_arguments_that_fit(prompt: str, spare: int) -> None:
    names = set()
    for tools in (TOOLS, TOOLS[:1]):
        grammar = harmony_calls(tools, TOKENIZER, ids_of(prompt))
        for seed in range(8):
            answer = drawn(grammar, prompt, spare, seed, AnswerForm().with_tools(TOOLS))
            assert answer.text == ""
            name = "".join(call.name for call in answer.calls)
            arguments: Any = json.loads("".join(call.arguments for call in answer.calls))
            jsonschema.validate(arguments, SCHEMAS[name])
            names.add(name)
        assert tools == TOOLS or name == "greet"
    assert spare < 120 or names == {"greet", "clock"}


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [("regex", "[ab]{3}", "aba"), ("choice", ["x", "yes"], "yes"), ("grammar", 'start: "z"', "z")],
)
def test_other_forms_hold_in_the_final_message_too(kind: Any, value: Any, text: str) -> None:
    grammar = harmony_answer(grammar_text(kind, value), TOKENIZER, ids_of(ASKED))
    message = f"<|channel|>final<|message|>{text}"
    for written in (message, f"<|channel|>analysis<|message|>Hm.\n<|end|><|start|>assistant{message}"):
        matcher = compiler_of(MODEL).compile(grammar)
        matcher.restore(ids_of(written), 100)
        assert matcher.is_complete


def test_a_prompt_that_ends_elsewhere_is_refused_with_what_is_to_be_done() -> None:
    answer = grammar_text("json_object", None)
    for prompt in (f"{ASKED}<|channel|>", f"{ASKED}<|channel|>commentary<|message|>"):
        with pytest.raises(InvalidRequest, match=r"^response_format, structured_outputs: the prompt must end where"):
            harmony_answer(answer, TOKENIZER, ids_of(prompt))
    with pytest.raises(InvalidRequest, match=r"^tool_choice: the prompt must end where"):
        harmony_calls(TOOLS, TOKENIZER, ids_of(ANSWERING))


def test_parameters_that_are_no_schema_are_an_error_of_their_tool() -> None:
    tools = [TOOLS[0], {"type": "function", "function": {"name": "x", "parameters": 3}}]
    with pytest.raises(InvalidRequest, match=r"^tools\[1\]\.function\.parameters: must be a JSON schema"):
        harmony_calls(tools, TOKENIZER, ids_of(ASKED))
