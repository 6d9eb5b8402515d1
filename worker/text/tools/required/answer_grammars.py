"""The grammars of one model's answers to messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from worker.text.special_tokens import harmony_texts
from worker.text.tokenizer import Tokenizer
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.required.call_grammar import call_grammar
from worker.text.tools.required.harmony_grammar import harmony_answer, harmony_calls


class AnswerGrammars:
    """Makes them in the form that the model answers in.

    ``prompt_ids`` say whether an answer begins within reasoning. Methods raise `InvalidRequest`.
    """

    def __init__(self, form: AnswerForm, tokenizer: Tokenizer) -> None:
        self._form = form
        self._tokenizer = tokenizer
        self._has_channels = bool(harmony_texts(tokenizer.special_ids.keys()))

    @property
    def take_calls(self) -> bool:
        """Whether it is known how the model calls tools."""
        return self._has_channels or self._form.syntax is not None

    def of_calls(self, tools: Sequence[Mapping[str, Any]], prompt_ids: Sequence[int]) -> str:
        """Of calls of these tools and nothing else."""
        if self._has_channels:
            return harmony_calls(tools, self._tokenizer, prompt_ids)
        return self._call_grammar(tools, prompt_ids)

    def of_document(self, document: str, tool_names: Sequence[str], prompt_ids: Sequence[int]) -> str:
        """Of a document of this grammar, or of calls of these tools, with any arguments, in its place."""
        tools = [{"function": {"name": name}} for name in tool_names]
        if self._has_channels:
            return harmony_answer(document, self._tokenizer, prompt_ids, tools)
        return self._call_grammar(tools, prompt_ids, document) if tools else document

    def _call_grammar(
        self, tools: Sequence[Mapping[str, Any]], prompt_ids: Sequence[int], document: str | None = None
    ) -> str:
        reasoning = self._form.reasoning
        thinks = reasoning is not None and reasoning.is_open(self._tokenizer, prompt_ids)
        return call_grammar(self._form, tools, self._tokenizer, thinks=thinks, document=document)
