"""The form of answers is the template's, and the tools are the request's."""

from __future__ import annotations

from typing import Any

from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.call_syntax import HERMES
from worker.text.tools.reasoning import ReasoningTags


def test_a_form_is_seen_from_a_template() -> None:
    source = """{{ '<think>' }}{{ '</think>' }}{{ '<tool_call>\\n{"name": "' }}"""
    assert AnswerForm.of(source) == AnswerForm(HERMES, ReasoningTags("<think>", "</think>"))
    assert AnswerForm.of("{{ messages }}") == AnswerForm()


def test_tools_without_a_name_are_left_out() -> None:
    named = {"type": "function", "function": {"name": "f"}}
    others: list[dict[str, Any]] = [{}, {"function": 5}, {"function": {"name": 5}}]
    assert AnswerForm(HERMES).with_tools([named, *others]).tool_names == {"f"}
    assert AnswerForm(HERMES).with_tools([]).tool_names == frozenset()
