"""A model's answers have the grammar of the form in which it calls tools and thinks."""

from __future__ import annotations

import pytest

from orcd.errors import InvalidRequest
from tests.worker.text.grammar.compilers import BYTE_LEVEL, tokenizer_of
from worker.text.grammar.grammar_text import grammar_text
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.call_syntax import HERMES
from worker.text.tools.reasoning import ReasoningTags
from worker.text.tools.required.answer_grammars import AnswerGrammars
from worker.text.tools.required.call_grammar import call_grammar
from worker.text.tools.required.harmony_grammar import harmony_answer, harmony_calls

TOKENIZER, CHANNELS = tokenizer_of(BYTE_LEVEL), tokenizer_of("gpt-oss-mxfp4_moe")
TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}]
OF_ANY_ARGUMENTS = [{"function": {"name": "clock"}}]
DOCUMENT = grammar_text("json_schema", {"type": "object", "properties": {}})


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special=False, parse_special=True)


def test_without_a_form_of_calls_an_answer_is_the_document_and_calls_are_refused() -> None:
    grammars = AnswerGrammars(AnswerForm(), TOKENIZER)
    assert not grammars.take_calls
    assert grammars.of_document(DOCUMENT, (), ()) == DOCUMENT
    with pytest.raises(InvalidRequest, match="tool_choice"):
        grammars.of_calls(TOOLS, ())


@pytest.mark.parametrize(("prompt", "thinks"), [("Hi", False), ("Hi<think>", True)])
def test_an_answer_that_begins_within_reasoning_goes_on_with_it(prompt: str, thinks: bool) -> None:
    form = AnswerForm(HERMES, ReasoningTags("<think>", "</think>"))
    grammars = AnswerGrammars(form, TOKENIZER)
    assert grammars.take_calls
    assert grammars.of_calls(TOOLS, ids_of(prompt)) == call_grammar(form, TOOLS, TOKENIZER, thinks=thinks)
    assert grammars.of_document(DOCUMENT, ["clock"], ids_of(prompt)) == call_grammar(
        form, OF_ANY_ARGUMENTS, TOKENIZER, thinks=thinks, document=DOCUMENT
    )


def test_a_model_with_channels_answers_in_them_whatever_its_template_shows() -> None:
    grammars = AnswerGrammars(AnswerForm(), CHANNELS)
    prompt_ids = CHANNELS.encode("<|start|>assistant", add_special=False, parse_special=True)
    assert grammars.take_calls
    assert grammars.of_calls(TOOLS, prompt_ids) == harmony_calls(TOOLS, CHANNELS, prompt_ids)
    assert grammars.of_document(DOCUMENT, ["clock"], prompt_ids) == harmony_answer(
        DOCUMENT, CHANNELS, prompt_ids, OF_ANY_ARGUMENTS
    )
