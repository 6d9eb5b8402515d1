"""Requests that ask for a form of answer: the grammar is checked before the job takes a place in the engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orcd.errors import InvalidRequest
from orcd.request import Request, parse
from tasks.dispatch.prompt_encoder import Prompt, PromptEncoder, TakesLong
from tests.models.files import SMALL
from tests.tasks import tool_templates as templates
from tests.tasks.dispatch.byte_model import READY
from tests.worker.text.grammar.compilers import BYTE_LEVEL, compiler_of, tokenizer_of
from worker.settings import Settings
from worker.text.grammar.grammar_text import grammar_text

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
LIMITS = msgspec.structs.replace(READY, vocab_size=100_000, max_sequence_tokens=4096)


@pytest.fixture(scope="module")
def encoder() -> Iterator[PromptEncoder]:
    encoder = PromptEncoder.load(Settings(model=str(SMALL["qwen2-q4_k_m"])))
    yield encoder
    encoder.close()


def request(**fields: Any) -> Request:
    return parse({"prompt": "hi", **fields})


def encoded(encoder: PromptEncoder, request: Request) -> Prompt:
    """As the worker does it: at once if that is possible, else in its thread for what takes long."""
    try:
        return encoder.encode(request, LIMITS)
    except TakesLong as long:
        return encoder.encode_long(request, LIMITS, long.lane)


def test_a_grammar_goes_to_the_engine_with_its_request(encoder: PromptEncoder) -> None:
    assert encoded(encoder, request()).grammar == ""
    assert encoded(encoder, request(response_format={"type": "text"})).grammar == ""
    assert encoded(encoder, request(response_format=FORMAT)).grammar == grammar_text("json_schema", SCHEMA)
    assert encoded(encoder, request(structured_outputs={"json": SCHEMA})).grammar == grammar_text("json_schema", SCHEMA)
    assert encoded(encoder, request(structured_outputs={"choice": ["a"]})).grammar == grammar_text("choice", ["a"])


CHAT: dict[str, Any] = {
    "prompt": None,
    "messages": [{"role": "user", "content": "hi"}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
}


def test_an_answer_with_a_form_may_be_calls_of_tools_instead(tmp_path: Path) -> None:
    """As agents do it: they call tools until they answer in the form that is asked for."""
    with closing(_encoder_with(templates.CHATML, tmp_path)) as encoder:
        calls = encoded(encoder, request(**CHAT, tool_choice="required")).grammar
        unknown = [{"function": {"name": "f", "parameters": {"type": "object", "uniqueItems": True}}}]
        either = encoded(encoder, request(**{**CHAT, "tools": unknown}, response_format=FORMAT)).grammar
        assert encoded(encoder, request(**CHAT, response_format=FORMAT, tool_choice="required")).grammar == calls
        document = grammar_text("json_schema", SCHEMA)
        assert encoded(encoder, request(**CHAT, structured_outputs={"json": SCHEMA})).grammar == document
        assert len({calls, either, document}) == 3
        for text in ('{"name": "x"}', '<tool_call>\n{"name": "f", "arguments": {"any": [1, 1]}}\n</tool_call>'):
            matcher = compiler_of(BYTE_LEVEL).compile(either)
            matcher.restore(tokenizer_of(BYTE_LEVEL).encode(text, add_special=False), 1000)
    with closing(_encoder_with("{{ messages[0].content }}", tmp_path)) as encoder:
        assert encoded(encoder, request(**CHAT, response_format=FORMAT)).grammar == document, "how to call is not known"


def test_an_answer_with_a_form_is_text_where_no_tool_has_a_name(tmp_path: Path) -> None:
    thinking = templates.CHATML + "{% if false %}</think>{% endif %}<think>"
    with closing(_encoder_with(thinking, tmp_path)) as encoder:
        prompt = encoded(encoder, request(**{**CHAT, "tools": [{"function": {}}]}, response_format=FORMAT))
    assert prompt.grammar == grammar_text("json_schema", SCHEMA)
    detokenizer, ids = prompt.detokenizer(), tokenizer_of(BYTE_LEVEL).encode('{"name": "x"}', add_special=False)
    assert detokenizer.feed(ids).text + detokenizer.finish().text == '{"name": "x"}'


def _encoder_with(template: str, folder: Path) -> PromptEncoder:
    path = folder / "template.jinja"
    path.write_text(template)
    return PromptEncoder.load(Settings(model=str(SMALL[BYTE_LEVEL]), chat_template=str(path)))


def test_only_the_first_request_with_a_grammar_takes_long(encoder: PromptEncoder) -> None:
    first = request(structured_outputs={"regex": "[ab]{3}"})
    with pytest.raises(TakesLong) as taken:
        encoder.encode(first, LIMITS)
    assert taken.value.lane == "grammars"
    prompt = encoder.encode_long(first, LIMITS, "grammars")
    assert replace(encoder.encode(first, LIMITS), detokenizer=prompt.detokenizer) == prompt


def test_a_grammar_that_cannot_be_used_is_refused_each_time(encoder: PromptEncoder) -> None:
    schemas = {
        "uniqueItems": {"type": "array", "uniqueItems": True},
        "propertyNames": {"propertyNames": {"minLength": 2}},
    }
    for _ in range(2):
        for keyword, schema in schemas.items():
            with pytest.raises(InvalidRequest, match=rf"not supported \({keyword}\)"):
                encoded(encoder, request(structured_outputs={"json": schema}))


def test_too_few_tokens_for_any_document_are_refused_with_how_many_it_takes(encoder: PromptEncoder) -> None:
    with pytest.raises(InvalidRequest, match=r"^max_tokens: 3 are too few .* at least \d+$") as refused:
        encoded(encoder, request(response_format=FORMAT, max_tokens=3))
    least = int(refused.value.message.rpartition(" ")[2])
    assert encoded(encoder, request(response_format=FORMAT, max_tokens=least)).sampling.max_tokens == least
    with pytest.raises(InvalidRequest):
        encoded(encoder, request(response_format=FORMAT, max_tokens=least - 1))


def test_a_process_that_was_killed_checks_the_next_grammar_all_the_same(encoder: PromptEncoder) -> None:
    encoded(encoder, request(structured_outputs={"choice": ["before"]}))
    child = encoder._slow["grammars"]._child
    assert child is not None
    child.process.kill()
    assert encoded(encoder, request(structured_outputs={"choice": ["after"]})).grammar
