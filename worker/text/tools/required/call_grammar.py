"""Answers that must be calls of tools, as a grammar."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orcd.errors import InvalidRequest
from worker.text.grammar.grammar_text import framed, grammar_text
from worker.text.tokenizer import Tokenizer
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.call_syntax import (
    GEMMA4,
    GEMMA_QUOTE,
    GLM,
    HERMES,
    LLAMA3,
    MISTRAL,
    QWEN_CODER,
    CallSyntax,
)
from worker.text.tools.required.gemma_grammar import GemmaGrammar, UnsupportedKeywordError
from worker.text.tools.required.tagged_grammar import function_tags, glm_tags, literal, tagged_rules

ANY_ARGUMENTS = {"type": "object"}


def call_grammar(
    form: AnswerForm,
    tools: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    thinks: bool,
    document: str | None = None,
) -> str:
    """The grammar of one call or several of the ``tools``, as the model writes them.

    With ``document``, the grammar of a JSON schema, that may stand in their place. ``thinks`` says that the answer
    begins within reasoning; otherwise it may begin with some where the model does that. Raises `InvalidRequest` if the
    model's chat template does not show how calls are written.
    """
    if form.syntax is None:
        raise InvalidRequest("tool_choice: the chat template does not show how tools are called; give auto or none")
    writer = _Writer(form.syntax, tokenizer)
    functions = [tool["function"] for tool in tools]
    rules = [writer.rule(index, function) for index, function in enumerate(functions)]
    calls = writer.calls(" | ".join(f"tool{index}" for index in range(len(tools))))
    thought, ending = "", []
    if form.reasoning is not None:
        thought = "thought" if thinks else f"({writer.text(form.reasoning.open)} thought)?"
        ending = writer.up_to(form.reasoning.close)
    # Other calls are no documents with a text around them.
    parts = arguments_of(functions) if form.syntax.written == "json" else {}
    if document is not None and parts:
        parts["document"] = document
    elif document is not None:
        rules.append(f"document: %json {json.dumps(json.loads(document)['grammars'][0]['json_schema'])}")
    answer = "calls" if document is None else f"(calls | {'@' if parts else ''}document)"
    return framed("\n".join([f"start: {thought} {answer}", *ending, *calls, *rules]), parts)


def arguments_of(functions: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The grammars of the arguments of each: ``arguments0``, ``arguments1`` and so on."""
    grammars = {}
    for index, function in enumerate(functions):
        try:
            grammars[f"arguments{index}"] = grammar_text("json_schema", function.get("parameters") or ANY_ARGUMENTS)
        except (TypeError, InvalidRequest):
            raise _misfit(index) from None
    return grammars


def control_text(tokenizer: Tokenizer, text: str) -> str:
    """A text in Lark's notation: the control token that is spelt so, if there is one."""
    token_id = tokenizer.special_ids.get(text)
    if token_id is not None and tokenizer.is_special(token_id):
        return f"<[{token_id}]>"
    return json.dumps(text, ensure_ascii=False)


class _Writer:
    """Writes the rules of one family's calls."""

    def __init__(self, syntax: CallSyntax, tokenizer: Tokenizer) -> None:
        self._syntax = syntax
        self._tokenizer = tokenizer
        self._is_named = syntax == MISTRAL and "[ARGS]" in tokenizer.special_ids

    def text(self, text: str) -> str:
        return control_text(self._tokenizer, text)

    def up_to(self, close: str) -> list[str]:
        """The rules of ``thought``: any text up to this one, and the space behind it."""
        written, space = self.text(close), r"SPACE: /\s{0,8}/"
        if written.startswith("<["):
            return [f"thought: TEXT {written} SPACE", r"TEXT: /(.|\n)*/", space]
        return ["thought: text SPACE", rf"text[suffix={written}]: /(.|\n)*/", space]

    def calls(self, tools: str) -> list[str]:
        """The rules of all calls, of which one is any of ``tools``."""
        syntax = self._syntax
        opens, close = self.text(syntax.opens[0]), self.text(syntax.close) if syntax.close else ""
        if syntax in (HERMES, QWEN_CODER):
            return ['calls: call ("\\n" call)*', f'call: {opens} "\\n" one "\\n" {close}', f"one: {tools}"]
        if syntax == GLM:
            return ['calls: call ("\\n" call)*', f"call: {opens} one {close}", f"one: {tools}"]
        if syntax == GEMMA4:
            return ["calls: call+", f"call: {opens} one {close}", f"one: {tools}"]
        if syntax == LLAMA3:
            return [f"calls: {tools}"]
        if self._is_named:
            return [f"calls: ({opens} one)+", f"one: {tools}"]
        return [f'calls: {opens} "[" one (", " one)* "]" {close}', f"one: {tools}"]

    def rule(self, index: int, function: Mapping[str, Any]) -> str:
        """The rule of a call of one tool, or its rules."""
        name = function["name"]
        if self._syntax.written != "json":
            parameters = function.get("parameters") or ANY_ARGUMENTS
            try:
                return "\n".join(self._written(f"tool{index}", name, parameters))
            except UnsupportedKeywordError as error:
                raise InvalidRequest(
                    f"tools[{index}].function.parameters: {error} is not supported in calls that this model must make;"
                    " leave it out, or give tool_choice auto"
                ) from None
            except (AttributeError, TypeError, InvalidRequest, RecursionError):
                raise _misfit(index) from None
        if self._is_named:
            return f"tool{index}: {self.text(name)} {self.text('[ARGS]')} @arguments{index}"
        if self._syntax == LLAMA3:
            # Each as in a document, which may stand in the place of calls: behind its { only a longer text could come.
            texts = ["{", '"name"', ":", " ", json.dumps(name), ",", " ", '"parameters"', ":", " "]
        else:
            texts = [f'{{"name": {json.dumps(name)}, "arguments": ']
        before = " ".join(json.dumps(text, ensure_ascii=False) for text in texts)
        return f'tool{index}: {before} @arguments{index} "}}"'

    def _written(self, rule: str, name: str, parameters: Mapping[str, Any]) -> Iterator[str]:
        """The rules of a call that is no JSON."""
        if self._syntax.written == "gemma":
            arguments = GemmaGrammar(rule, parameters, self.text(GEMMA_QUOTE))
            yield f"{rule}: {literal(f'call:{name}')} {arguments.root}"
            yield from arguments.rules
        else:
            tags = (glm_tags if self._syntax == GLM else function_tags)(self.text)
            yield from tagged_rules(rule, name, parameters, tags)


def _misfit(index: int) -> InvalidRequest:
    return InvalidRequest(f"tools[{index}].function.parameters: must be a JSON schema")
