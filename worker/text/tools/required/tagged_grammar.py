"""Calls that are written in tags, as grammars."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from worker.text.grammar.grammar_text import grammar_text
from worker.text.tools.call_syntax import GLM_TAGS
from worker.text.tools.tagged_call import is_text

_MAX_COUNTED = 4096
"""Characters of a parameter that are counted; a grammar that counts has a size that grows with them."""


@dataclass(frozen=True, slots=True)
class Tags:
    """What stands around the parts of a call, in Lark's notation; ``close`` is one text or one control token."""

    begin: Callable[[str], str]
    """What stands before the parameters of the tool of this name."""
    before: Callable[[str], str]
    """What stands before the value of the parameter of this name."""
    close: str
    space: str
    """What stands between the value and ``close`` (in quotes, or nothing): a text may end with it."""
    end: str


def function_tags(control_text: Callable[[str], str]) -> Tags:
    """Those of Qwen3-Coder; ``control_text`` writes a text that may be a control token."""
    return Tags(
        lambda name: literal(f"<function={name}>\n"),
        lambda name: literal(f"<parameter={name}>\n"),
        control_text("</parameter>"),
        '"\\n"',
        '"</function>"',
    )


def glm_tags(control_text: Callable[[str], str]) -> Tags:
    """Those of GLM."""
    key, key_end, value, value_end = map(control_text, GLM_TAGS)
    return Tags(
        lambda name: literal(f"{name}\n"),
        lambda name: f'{key} {literal(name)} {key_end} "\\n" {value}',
        value_end,
        "",
        "",
    )


def tagged_rules(rule: str, name: str, schema: Mapping[str, Any], tags: Tags) -> Iterator[str]:
    """The rules of a call of the tool of this name: the parameters in the schema's order.

    Those that are not required may be missing. Raises `AttributeError` or `TypeError` for what is no schema.
    """
    required, places = schema.get("required", ()), []
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    for place, (key, value) in enumerate((schema.get("properties") or {}).items()):
        one = f"{rule}_{place}"
        places.append(one if key in required else f"{one}?")
        if is_text(value) and "enum" not in value:
            most = value.get("maxLength")
            length = f"{{0,{most}}}" if type(most) is int and 0 <= most <= _MAX_COUNTED else "*"
            yield f'{one}: {tags.before(key)} {one}_text "\\n"'
            yield from text_rules(f"{one}_text", length, tags.close)
        elif is_text(value):
            choices = " | ".join(literal(str(choice)) for choice in value["enum"])
            yield f'{one}: {tags.before(key)} ({choices}) {tags.space} {tags.close} "\\n"'
        else:
            document = json.loads(grammar_text("json_schema", {**value, **definitions}))["grammars"][0]["json_schema"]
            yield f'{one}: {tags.before(key)} {one}_json {tags.space} {tags.close} "\\n"'
            yield f"{one}_json: %json {json.dumps(document)}"
    yield f"{rule}: {tags.begin(name)} {' '.join(places)} {tags.end}"


def text_rules(rule: str, length: str, close: str) -> Iterator[str]:
    """The rules of any text of this ``length`` (the end of a regular expression), and of ``close`` behind it."""
    if close.startswith("<["):
        yield f"{rule}: {rule.upper()} {close}"
        yield rf"{rule.upper()}: /(.|\n){length}/"
    else:
        yield rf"{rule}[suffix={close}]: /(.|\n){length}/"


def literal(text: str) -> str:
    """A text in Lark's notation."""
    return json.dumps(text, ensure_ascii=False)
