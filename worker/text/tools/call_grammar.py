"""Answers that must be calls of tools, as a grammar."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orcd.errors import InvalidRequest
from worker.text.grammar.grammar_text import framed, grammar_text
from worker.text.tokenizer import Tokenizer
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.call_syntax import HERMES, LLAMA3, MISTRAL, QWEN_CODER, CallSyntax
from worker.text.tools.tagged_call import is_text

ANY_ARGUMENTS = {"type": "object"}

_MAX_COUNTED = 4096
"""Characters of a parameter in tags that are counted; a grammar that counts has a size that grows with them."""


def call_grammar(form: AnswerForm, tools: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, *, thinks: bool) -> str:
    """The grammar of one call or several of the ``tools``, as the model writes them.

    ``thinks`` says that the answer begins within reasoning; otherwise it may begin with some where the model does that.
    Raises `InvalidRequest` if the model's chat template does not show how calls are written.
    """
    if form.syntax is None:
        raise InvalidRequest("tool_choice: the chat template does not show how tools are called; give auto or none")
    if form.syntax.written == "gemma":
        raise InvalidRequest("tool_choice: calls cannot be required in the form in which this model writes; give auto")
    writer = _Writer(form.syntax, tokenizer)
    functions = [tool["function"] for tool in tools]
    rules = [writer.rule(index, function) for index, function in enumerate(functions)]
    calls = writer.calls(" | ".join(f"tool{index}" for index in range(len(tools))))
    start = ["start: calls"]
    if form.reasoning is not None:
        start = [f"start: {'thought' if thinks else f'({writer.text(form.reasoning.open)} thought)?'} calls"]
        start += writer.up_to(form.reasoning.close)
    # Calls in tags are no documents with a text around them: any text may stand in them.
    parts = {} if form.syntax == QWEN_CODER else arguments_of(functions)
    return framed("\n".join([*start, *calls, *rules]), parts)


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
        if syntax == LLAMA3:
            return [f"calls: {tools}"]
        if self._is_named:
            return [f"calls: ({opens} one)+", f"one: {tools}"]
        return [f'calls: {opens} "[" one (", " one)* "]" {close}', f"one: {tools}"]

    def rule(self, index: int, function: Mapping[str, Any]) -> str:
        """The rule of a call of one tool, or its rules."""
        name = function["name"]
        if self._syntax == QWEN_CODER:
            try:
                return "\n".join(_tagged(f"tool{index}", name, function.get("parameters") or ANY_ARGUMENTS))
            except (AttributeError, TypeError, InvalidRequest):
                raise _misfit(index) from None
        if self._is_named:
            return f"tool{index}: {self.text(name)} {self.text('[ARGS]')} @arguments{index}"
        key = "parameters" if self._syntax == LLAMA3 else "arguments"
        before = json.dumps(f'{{"name": {json.dumps(name)}, "{key}": ', ensure_ascii=False)
        return f'tool{index}: {before} @arguments{index} "}}"'


def _misfit(index: int) -> InvalidRequest:
    return InvalidRequest(f"tools[{index}].function.parameters: must be a JSON schema")


def _tagged(rule: str, name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    """The rules of a call in tags: the parameters in the schema's order, of which those not required may be missing."""
    required, places = schema.get("required", ()), []
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    for place, (key, value) in enumerate((schema.get("properties") or {}).items()):
        places.append(f"{rule}_{place}" if key in required else f"{rule}_{place}?")
        before = json.dumps(f"<parameter={key}>\n", ensure_ascii=False)
        if is_text(value) and "enum" not in value:
            yield f'{rule}_{place}: {before} {rule}_{place}_text "\\n"'
            most = value.get("maxLength")
            length = f"{{0,{most}}}" if type(most) is int and 0 <= most <= _MAX_COUNTED else "*"
            yield f'{rule}_{place}_text[suffix="</parameter>"]: /(.|\\n){length}/'
        elif is_text(value):
            choices = " | ".join(json.dumps(str(choice), ensure_ascii=False) for choice in value["enum"])
            yield f'{rule}_{place}: {before} ({choices}) "\\n</parameter>\\n"'
        else:
            document = json.loads(grammar_text("json_schema", {**value, **definitions}))["grammars"][0]["json_schema"]
            yield f'{rule}_{place}: {before} {rule}_{place}_json "\\n</parameter>\\n"'
            yield f"{rule}_{place}_json: %json {json.dumps(document)}"
    begin = json.dumps(f"<function={name}>\n", ensure_ascii=False)
    yield f'{rule}: {begin} {" ".join(places)} "</function>"'
