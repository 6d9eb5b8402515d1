"""In which form a model answers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from worker.text.tools.call_syntax import CallSyntax, syntax_of
from worker.text.tools.reasoning import ReasoningTags, tags_of


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What to look for in an answer: calls of ``tools`` and reasoning. By default it is all text.

    ``tools`` has the JSON schemas of the parameters by the name of the tool. With ``ends_with_call`` the answer ends
    with its first call.
    """

    syntax: CallSyntax | None = None
    reasoning: ReasoningTags | None = None
    tools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ends_with_call: bool = False

    @property
    def tool_names(self) -> Collection[str]:
        """Calls of which are looked for."""
        return self.tools.keys()

    @classmethod
    def of(cls, template: str) -> AnswerForm:
        """As the source of a chat template shows it."""
        return cls(syntax_of(template), tags_of(template))

    def with_tools(self, tools: Iterable[Mapping[str, Any]], *, ends_with_call: bool = False) -> AnswerForm:
        """The form of the answer to a request that has these tools, as chat completions of OpenAI have them."""
        functions = [tool.get("function") for tool in tools]
        named = [each for each in functions if isinstance(each, Mapping) and isinstance(each.get("name"), str)]
        schemas = {each["name"]: each.get("parameters") for each in named}
        known = {name: schema if isinstance(schema, Mapping) else {} for name, schema in schemas.items()}
        return replace(self, tools=known, ends_with_call=ends_with_call)
