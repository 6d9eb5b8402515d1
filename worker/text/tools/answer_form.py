"""In which form a model answers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from worker.text.tools.call_syntax import CallSyntax, syntax_of
from worker.text.tools.reasoning import ReasoningTags, tags_of


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What to look for in an answer: calls of ``tool_names`` and reasoning. By default it is all text."""

    syntax: CallSyntax | None = None
    reasoning: ReasoningTags | None = None
    tool_names: Collection[str] = frozenset()

    @classmethod
    def of(cls, template: str) -> AnswerForm:
        """As the source of a chat template shows it."""
        return cls(syntax_of(template), tags_of(template))

    def with_tools(self, tools: Iterable[Mapping[str, Any]]) -> AnswerForm:
        """The form of the answer to a request that has these tools, as chat completions of OpenAI have them."""
        functions = (tool.get("function") for tool in tools)
        names = frozenset(
            function["name"]
            for function in functions
            if isinstance(function, Mapping) and isinstance(function.get("name"), str)
        )
        return replace(self, tool_names=names)
