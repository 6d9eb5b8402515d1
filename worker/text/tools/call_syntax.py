"""How models write calls of tools, one row a family, and which of them a chat template asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """Behind one of the texts ``opens`` stands a call, ``{"name": ..., "arguments": {...}}``, or a list of calls.

    ``close`` ends the calls, but may be missing. With ``takes_name`` a call may also be ``NAME[ARGS]{...}``, with
    ``[CALL_ID]ID`` behind its name or not. With ``is_bare`` calls need no text before them where an answer begins or
    another call ends; only those that name a tool of the request are calls then.

    Calls that are no JSON are ``written`` in tags, ``<function=NAME><parameter=KEY>VALUE</parameter></function>``, or
    as GLM writes them: ``NAME`` and then the `GLM_TAGS` around each key and value; or as Gemma does:
    ``call:NAME{KEY:VALUE}``, where texts stand between `GEMMA_QUOTE`.
    """

    opens: tuple[str, ...]
    close: str = ""
    takes_name: bool = False
    is_bare: bool = False
    written: Literal["json", "tags", "glm", "gemma"] = "json"

    @property
    def markers(self) -> tuple[str, ...]:
        """All texts that stand for themselves; in some vocabularies they are control tokens."""
        of_names = ("[ARGS]", "[CALL_ID]") if self.takes_name else ()
        of_values = {"gemma": (GEMMA_QUOTE,), "glm": GLM_TAGS}.get(self.written, ())
        return (*self.opens, *filter(None, [self.close]), *of_names, *of_values)


GEMMA_QUOTE = '<|"|>'
GLM_TAGS = ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")

HERMES = CallSyntax(("<tool_call>",), "</tool_call>")
"""Hermes, Qwen2.5, Qwen3, Granite 4."""
LLAMA3 = CallSyntax(("<|python_tag|>",), is_bare=True)
"""Llama 3.1 to 3.3, which have ``parameters`` for ``arguments``."""
MISTRAL = CallSyntax(("[TOOL_CALLS]",), takes_name=True)
PHI4 = CallSyntax(("<|tool_call|>",), "<|/tool_call|>")
"""Phi-4-mini; Granite 3 without the closing text."""
QWEN_CODER = CallSyntax(("<tool_call>",), "</tool_call>", written="tags")
"""Qwen3-Coder, Qwen3.5 and later ones."""
GLM = CallSyntax(("<tool_call>",), "</tool_call>", written="glm")
"""GLM-4.5 and later ones."""
GEMMA4 = CallSyntax(("<|tool_call>",), "<tool_call|>", written="gemma")
FUNCTOOLS = CallSyntax(("functools",))
"""Firefunction, and what some templates ask Phi-4-mini for."""

_ROWS = (
    (MISTRAL, re.compile(r"\[TOOL_CALLS\]")),
    # Others write XML between these tags. In a template's source the JSON may be cut into several literals.
    (HERMES, re.compile(r"""<tool_call>(?:\\n|[\s"'{}\[~+\\-])*name\b""")),
    (QWEN_CODER, re.compile(r"<tool_call>(?:\\n|[\s\"'{}\[~+\\-])*<function=")),
    (GLM, re.compile(r"<arg_key>")),
    (GEMMA4, re.compile(r"<\|tool_call>call:")),
    (FUNCTOOLS, re.compile(r"functools\[")),
    (PHI4, re.compile(r"<\|tool_call\|>|<\|/tool\|>")),
    (LLAMA3, re.compile(r'\{"name": function name, "parameters": dictionary')),
)


def syntax_of(template: str) -> CallSyntax | None:
    """The one that the source of a chat template shows or asks for; None for one that is not known."""
    return next((syntax for syntax, pattern in _ROWS if pattern.search(template)), None)
