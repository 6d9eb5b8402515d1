"""Calls in tags: which parameters may be written, and where."""

from __future__ import annotations

import json

import pytest

from tests.worker.text.grammar.compilers import BYTE_LEVEL, allowed_ids, compiler_of, tokenizer_of
from tests.worker.text.vocabularies import bpe_metadata
from worker.text import tokenizer
from worker.text.grammar.grammar_compiler import GrammarCompiler
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.call_syntax import GLM, QWEN_CODER, CallSyntax
from worker.text.tools.required.call_grammar import call_grammar
from worker.text.tools.required.tagged_grammar import literal, text_rules

TAGS = {"qwen": ("<function=f>\n", "<parameter={}>\n{}\n</parameter>\n", "</function>", QWEN_CODER)}
TAGS["glm"] = ("f\n", "<arg_key>{}</arg_key>\n<arg_value>{}</arg_value>\n", "", GLM)


@pytest.mark.parametrize(("begin", "one", "end", "syntax"), TAGS.values(), ids=TAGS)
def test_parameters_in_tags_come_in_order_and_may_be_missing_where_they_are_not_required(
    begin: str, one: str, end: str, syntax: CallSyntax
) -> None:
    schema = {
        "properties": {
            "kind": {"type": "string", "enum": ["a", "b c"]},
            "text": {"type": "string"},
            "count": {"type": "integer"},
        },
        "required": ["kind"],
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    grammar = call_grammar(AnswerForm(syntax), tools, tokenizer_of(BYTE_LEVEL), thinks=False)
    tokenizer = tokenizer_of(BYTE_LEVEL)
    kind, text, count = (
        one.format(key, value) for key, value in (("kind", "b c"), ("text", "two\n\nlines"), ("count", "5"))
    )
    space = "\n" if syntax == QWEN_CODER else ""
    for parameters in (kind, kind + count, kind + text + count):
        matcher = compiler_of(BYTE_LEVEL).compile(grammar)
        call = f"<tool_call>{space}{begin}{parameters}{end}{space}</tool_call>"
        matcher.restore(tokenizer.encode(call, add_special=False), 1000)
        assert set(allowed_ids(matcher, tokenizer.vocab_size)) & tokenizer.end_ids


def test_tags_that_are_control_tokens_are_written_with_them_and_end_texts() -> None:
    vocabulary = tokenizer.from_metadata(bpe_metadata("a b", control=("<|user|>", "<|observation|>", *GLM.markers)))
    schema = {"properties": {"a": {"type": "string", "maxLength": 9}, "n": {"type": "integer"}}, "required": ["a", "n"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    grammar = call_grammar(AnswerForm(GLM), tools, vocabulary, thinks=False)
    assert "suffix" not in json.loads(grammar)["grammars"][0]["lark_grammar"]
    matcher = GrammarCompiler(vocabulary).compile(grammar)
    call = "f\n<arg_key>a</arg_key>\n<arg_value>b<c</arg_value>\n<arg_key>n</arg_key>\n<arg_value>-7</arg_value>\n"
    ids = vocabulary.encode(f"<tool_call>{call}</tool_call>", add_special=False, parse_special=True)
    assert [matcher.take(token_id, 1000 - place) for place, token_id in enumerate(ids)] == ids
    assert vocabulary.end_ids.intersection(allowed_ids(matcher, vocabulary.vocab_size))


def test_a_text_ends_with_its_suffix_or_with_a_control_token() -> None:
    assert list(text_rules("x", "{0,3}", literal('"'))) == [r'x[suffix="\""]: /(.|\n){0,3}/']
    assert list(text_rules("x", "*", "<[7]>")) == ["x: X <[7]>", r"X: /(.|\n)*/"]
