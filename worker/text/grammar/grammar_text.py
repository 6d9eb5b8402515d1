"""Grammars as llguidance reads them: what crosses to the engine, and what equal requests have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from llguidance import LLMatcher

from orcd.errors import InvalidRequest

Kind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]

WHITESPACE = "[ \\n]{0,8}"
"""Between the parts of a JSON document. Models that may write any amount sometimes write nothing else."""


def grammar_text(kind: Kind, value: Any, whitespace: str | None = None) -> str:
    """The grammar of an answer.

    ``value`` is the JSON schema that it fits, the regular expression that it matches, the texts of which it is one, or
    a grammar in Lark's notation. ``whitespace`` is a regular expression for what may stand between the parts of a JSON
    document. Whether a grammar can be made of these is seen when it is compiled; raises `InvalidRequest` for a schema
    that is nested too deeply to be written down.
    """
    match kind:
        case "json_schema":
            return _of_schema(value, whitespace)
        case "json_object":
            return _of_schema({"type": "object"}, whitespace)
        case "regex":
            return LLMatcher.grammar_from_regex(value)
        case "choice":
            return LLMatcher.grammar_from_lark(_of_choices(value))
        case "grammar":
            return LLMatcher.grammar_from_lark(value)


def json_schema_of(grammar: str) -> Any:
    """The JSON schema that a grammar is of; None for another grammar."""
    try:
        return _decoder.decode(grammar).grammars[0].json_schema
    except (msgspec.MsgspecError, IndexError):
        return None


class _Grammar(msgspec.Struct):
    json_schema: Any = None


class _Grammars(msgspec.Struct):
    grammars: list[_Grammar]


_decoder = msgspec.json.Decoder(_Grammars)


def _of_schema(schema: Mapping[str, Any] | bool, whitespace: str | None) -> str:
    try:
        text = json.dumps(schema)
        return LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": whitespace or WHITESPACE})
    except (RecursionError, ValueError):
        raise InvalidRequest("the JSON schema of the answer is nested too deeply") from None


def _of_choices(texts: Sequence[str]) -> str:
    return "start: " + " | ".join(json.dumps(text) for text in texts)
