"""Reasoning stands in front of an answer, and is told from it however the text comes in."""

from __future__ import annotations

import pytest

from tests.worker.text.vocabularies import bpe_metadata, decoder
from worker.text import tokenizer
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.answer_parser import AnswerParser
from worker.text.tools.answer_parts import AnswerParts
from worker.text.tools.call_syntax import HERMES
from worker.text.tools.marker_search import MAX_SPACE
from worker.text.tools.reasoning import ReasoningTags

THINK = ReasoningTags("<think>", "</think>")
SPACE = " " * MAX_SPACE
OPENED = decoder(b"<think>")


def parse(text: str, size: int, prompt_ids: list[int]) -> tuple[str, str]:
    parser, parts = AnswerParser(AnswerForm(reasoning=THINK), OPENED, prompt_ids), AnswerParts()
    for start in range(0, len(text), size):
        parser.feed(text[start : start + size], parts)
    parser.finish(parts)
    return parts.analysis, parts.answer


@pytest.mark.parametrize(
    ("text", "prompt_ids", "analysis", "answer"),
    [
        ("<think>\nhm < so\n</think>\n\nyes", [], "hm < so", "yes"),
        (f"{SPACE}<think>hm</think>yes", [], "hm", "yes"),
        (f"{SPACE} <think>hm</think>yes", [], "", f"{SPACE} <think>hm</think>yes"),
        ("<think>\n\n</think>\n\nyes", [], "", "yes"),
        ("yes <think>hm</think>", [], "", "yes <think>hm</think>"),
        ("<thi", [], "", "<thi"),
        (" \n", [], "", " \n"),
        ("\nhm\n</think> yes </think>", [0], "hm", "yes </think>"),
        ("hm\n</thi", [0], "hm\n</thi", ""),
        ("</think>", [0], "", ""),
    ],
)
def test_reasoning_is_told_apart_however_it_is_cut(
    text: str, prompt_ids: list[int], analysis: str, answer: str
) -> None:
    for size in range(1, len(text) + 1):
        assert parse(text, size, prompt_ids) == (analysis, answer)


def test_a_call_within_reasoning_is_reasoning_and_one_behind_it_a_call() -> None:
    parser, parts = AnswerParser(AnswerForm(HERMES, THINK, {"f": {}}), OPENED, [0]), AnswerParts()
    parser.feed('<tool_call>{"name": "f"}</think>\n<tool_call>{"name": "f"}', parts)
    parser.finish(parts)
    assert (parts.analysis, parts.answer, len(parts.calls)) == ('<tool_call>{"name": "f"}', "", 2)


def test_text_passes_where_it_is_certain_what_it_is() -> None:
    parser = AnswerParser(AnswerForm(reasoning=THINK), OPENED, [0])
    assert parser.passes("hm") is None, "whitespace in front is left out"
    parser.feed("hm", AnswerParts())
    assert parser.passes(" so") == "analysis"
    assert parser.passes("so <") is parser.passes("so\n") is None
    parser.feed("</think>\n\nyes", AnswerParts())
    assert parser.passes("a < b\n") == "answer", "nothing is looked for any more"


def test_there_is_no_parser_where_nothing_is_looked_for() -> None:
    for form in (AnswerForm(), AnswerForm(HERMES), AnswerForm(None, None, {"f"})):
        assert AnswerParser.of(form, OPENED, []) is None


def test_markers_that_are_control_tokens_are_named() -> None:
    subject = tokenizer.from_metadata(bpe_metadata("a b", control=("<|im_end|>", "<tool_call>", "</think>")))
    parser = AnswerParser(AnswerForm(HERMES, THINK, {"f": {}}), subject, [])
    assert parser.marker_ids == {subject.special_ids["<tool_call>"], subject.special_ids["</think>"]}
    assert AnswerParser(AnswerForm(HERMES, THINK), subject, []).marker_ids == {subject.special_ids["</think>"]}
