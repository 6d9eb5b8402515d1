"""Calls that are not written as JSON: their arguments become JSON when the call is complete."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from worker.text.tools.call_reader import MAX_WORD, CallSink, NotACall, Reader
from worker.text.tools.call_syntax import GEMMA_QUOTE

MAX_DEPTH = 64
"""How deep the arguments of a call may nest."""

_SPACE = frozenset(" \t\n\r")
_NAME = re.compile(r"[\w.-]+")


class TaggedCall:
    """One call in tags. ``tools`` have the schemas of their parameters, which say what is text and what JSON."""

    def __init__(self, sink: CallSink, tools: Mapping[str, Mapping[str, Any]]) -> None:
        self._sink = sink
        self._tools = tools

    def calls(self) -> Reader[None]:
        """Raises `NotACall` at the first character that belongs to none."""
        name = yield from _tag("function=")
        arguments: dict[str, Any] = {}
        while True:
            tag = yield from _any_tag()
            if tag == "/function":
                break
            key = tag.removeprefix("parameter=")
            if key in ("", tag):
                raise NotACall
            text = yield from _until("</parameter>")
            schema = _schemas(self._tools, name).get(key)
            arguments[key] = _value(text.removeprefix("\n").removesuffix("\n"), schema)
        self._sink.begin(name)
        self._sink.add_arguments(json.dumps(arguments, ensure_ascii=False))
        self._sink.accept()


class GlmCall:
    """One call of GLM, and the tag that closes it. ``tools`` are as those of `TaggedCall`."""

    def __init__(self, sink: CallSink, tools: Mapping[str, Mapping[str, Any]]) -> None:
        self._sink = sink
        self._tools = tools

    def calls(self) -> Reader[None]:
        """Raises `NotACall` at the first character that belongs to none."""
        name = _behind((yield from _until("<", MAX_WORD)), "")
        schemas = _schemas(self._tools, name)
        arguments: dict[str, Any] = {}
        tag = yield from _until(">", MAX_WORD)
        while tag == "arg_key":
            key = (yield from _until("</arg_key>")).strip()
            if (yield from _any_tag()) != "arg_value":
                raise NotACall
            arguments[key] = _value((yield from _until("</arg_value>")), schemas.get(key))
            tag = yield from _any_tag()
        if tag != "/tool_call":
            raise NotACall
        self._sink.begin(name)
        self._sink.add_arguments(json.dumps(arguments, ensure_ascii=False))
        self._sink.accept()


class GemmaCall:
    """One call of Gemma 4."""

    def __init__(self, sink: CallSink) -> None:
        self._sink = sink

    def calls(self) -> Reader[None]:
        """Raises `NotACall` at the first character that belongs to none."""
        head = yield from _until("{", MAX_WORD)
        name = _behind(head, "call:")
        arguments = yield from self._object(0)
        self._sink.begin(name)
        self._sink.add_arguments(json.dumps(arguments, ensure_ascii=False))
        self._sink.accept()

    def _object(self, depth: int) -> Reader[dict[str, Any]]:
        """What stands behind an opening brace."""
        values: dict[str, Any] = {}
        char = yield from _visible()
        while char != "}":
            key = yield from self._key(char)
            values[key], char = yield from self._item(depth)
            char = yield from self._next(char, "}")
        return values

    def _list(self, depth: int) -> Reader[list[Any]]:
        """What stands behind an opening bracket."""
        values: list[Any] = []
        char = yield from _visible()
        while char != "]":
            value, char = yield from self._item(depth, char)
            values.append(value)
            char = yield from self._next(char, "]")
        return values

    def _next(self, char: str, end: str) -> Reader[str]:
        """The first character of the next item, or the end; ``char`` stands behind the last item."""
        if char == ",":
            char = yield from _visible()
        elif char != end:
            raise NotACall
        return char

    def _key(self, char: str) -> Reader[str]:
        if char == "<":
            yield from _expect(GEMMA_QUOTE[1:])
            key = yield from _until(GEMMA_QUOTE)
            yield from _expect(":")
            return key
        return char + (yield from _until(":", MAX_WORD))

    def _item(self, depth: int, char: str = "") -> Reader[tuple[Any, str]]:
        """A value and the character behind it; ``char`` is its first one if that was read before."""
        char = char or (yield from _visible())
        value: Any
        if char in "{[":
            if depth >= MAX_DEPTH:
                raise NotACall
            value = yield from (self._object(depth + 1) if char == "{" else self._list(depth + 1))
        elif char == "<":
            yield from _expect(GEMMA_QUOTE[1:])
            value = yield from _until(GEMMA_QUOTE)
        else:
            word = char
            while (char := (yield)) not in ",}]":
                word += char
                if len(word) > MAX_WORD:
                    raise NotACall
            return _plain(word.strip()), char
        return value, (yield from _visible())


def _plain(word: str) -> Any:
    """A value without quotes: true, false, null, a number, and otherwise a text."""
    return _json(word.lower() if word.lower() in ("true", "false", "null") else word)


def _schemas(tools: Mapping[str, Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The schemas of a tool's parameters."""
    parameters = tools.get(name, {}).get("properties")
    return parameters if isinstance(parameters, Mapping) else {}


def _value(text: str, schema: Any) -> Any:
    """The value of a parameter: JSON where the schema wants no text, and the text itself where it is no JSON."""
    return text if not isinstance(schema, Mapping) or is_text(schema) else _json(text)


def is_text(schema: Mapping[str, Any]) -> bool:
    """Whether a parameter may be a text, and is then written without quotes."""
    kinds = schema.get("type", ())
    return kinds == "string" or (isinstance(kinds, list) and "string" in kinds)


def _json(text: str) -> Any:
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # JSON may hold what no text may: half a pair
    except (ValueError, RecursionError):
        return text
    return value


def _behind(text: str, start: str) -> str:
    """The name behind ``start``."""
    name = text.strip().removeprefix(start)
    if (start and name == text.strip()) or not _NAME.fullmatch(name) or len(name) > MAX_WORD:
        raise NotACall
    return name


def _tag(start: str) -> Reader[str]:
    return _behind((yield from _any_tag()), start)


def _any_tag() -> Reader[str]:
    """What stands between the next angle brackets, before which there is only whitespace."""
    if (yield from _visible()) != "<":
        raise NotACall
    return (yield from _until(">", MAX_WORD))


def _visible() -> Reader[str]:
    """The next character that is no whitespace."""
    while (char := (yield)) in _SPACE:
        pass
    return char


def _expect(text: str) -> Reader[None]:
    for wanted in text:
        if (yield) != wanted:
            raise NotACall


def _until(end: str, most: int | None = None) -> Reader[str]:
    """All up to ``end``, which is read, too, in at most ``most`` characters."""
    chars: list[str] = []
    last = end[-1]
    while True:
        chars.append((yield))
        if chars[-1] == last and "".join(chars[-len(end) :]) == end:
            return "".join(chars[: -len(end)])
        if most is not None and len(chars) > most:
            raise NotACall
