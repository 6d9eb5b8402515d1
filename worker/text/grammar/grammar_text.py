"""Grammars as llguidance reads them: what crosses to the engine, and what equal requests have in common.

Its JSON is written here without it: who only sends grammars need not load it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from orcd.errors import InvalidRequest
from orcd.structured_output import Kind

MAX_SUFFIXES = 16
MOST_SPACE = 8
WHITESPACE = f"[ \\n]{{0,{MOST_SPACE}}}"
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
            return _of_lark(f"start: /{_SLASHES.sub(_escaped, value)}/")
        case "choice":
            return _of_lark(_of_choices(value))
        case "grammar":
            return _of_lark(value)


def framed(frame: str, parts: Mapping[str, str]) -> str:
    """The grammar of a text with documents in it.

    ``frame`` is in Lark's notation and names each part as ``@NAME``; ``parts`` are what `grammar_text` returns. A text
    can be written without a rule of the frame twice.
    """
    named = [{"name": name, **json.loads(part)["grammars"][0]} for name, part in parts.items()]
    return json.dumps({"grammars": [{"lark_grammar": frame}, *named]})


class Schemas(NamedTuple):
    """The JSON schemas of the documents in an answer, and how many bytes may stand around these."""

    schemas: Sequence[Any]
    frame_bytes: int


def schemas_of(grammar: str) -> Schemas | None:
    """What a grammar is made of; None where it is not made of JSON schemas, and a frame, alone."""
    try:
        first, *others = _decoder.decode(grammar).grammars
    except (msgspec.MsgspecError, ValueError):
        return None
    schemas = [each.json_schema for each in others] if first.json_schema is None else [first.json_schema]
    return None if not schemas or None in schemas else Schemas(schemas, len(first.lark_grammar.encode()))


def has_own_whitespace(schema: Any) -> bool:
    """Whether anything else may stand between the parts of documents than usual; ``schema`` is one of `schemas_of`."""
    return not isinstance(schema, dict) or schema.get(_OPTIONS) != {"whitespace_pattern": WHITESPACE}


def suffixes_of(grammar: str) -> Sequence[bytes]:
    """What ends texts of the grammar that may go on with anything else: the first few, each once."""
    try:
        frames = _decoder.decode(grammar).grammars
        found = (json.loads(text).encode() for frame in frames for text in _SUFFIX.findall(frame.lark_grammar))
        return list(dict.fromkeys(filter(None, found)))[:MAX_SUFFIXES]
    except (msgspec.MsgspecError, ValueError):
        return []


class _Grammar(msgspec.Struct):
    json_schema: Any = None
    lark_grammar: str = ""


class _Grammars(msgspec.Struct):
    grammars: list[_Grammar]


_decoder = msgspec.json.Decoder(_Grammars)


_OPTIONS = "x-guidance"
"""Where llguidance reads how documents are written."""
_SUFFIX = re.compile(r'\[suffix=("(?:[^"\\]|\\.)*")\]')
_SLASHES = re.compile(r"\\.|[/\n]", re.DOTALL)
"""What is escaped already, or must be between the slashes of an expression in Lark's notation."""


def _of_schema(schema: dict[str, Any], whitespace: str | None) -> str:
    options = {"whitespace_pattern": whitespace or WHITESPACE}
    try:
        return json.dumps({"grammars": [{"json_schema": {**schema, _OPTIONS: options}}]})
    except (RecursionError, ValueError):
        raise InvalidRequest("the JSON schema of the answer is nested too deeply") from None


def _of_lark(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def _of_choices(texts: Sequence[str]) -> str:
    return "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)


def _escaped(match: re.Match[str]) -> str:
    return {"/": r"\/", "\n": r"\n", "\\\n": r"\n"}.get(match[0], match[0])
