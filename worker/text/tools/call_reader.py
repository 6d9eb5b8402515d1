"""Reads the text of calls one character at a time: what stands around their arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Generator
from typing import Protocol, TypeVar

from worker.text.tools.call_syntax import CallSyntax
from worker.text.tools.json_value import JsonValue

MAX_WORD = 512
"""Characters of a name, a key or an id."""

_WORD = re.compile(r"[\w.-]*")
_SPACE = frozenset(" \t\n\r")

_T = TypeVar("_T")
Reader = Generator[None, str, _T]
"""Is sent one character after the other."""


class NotACall(Exception):
    """What has been read is text."""


class CallSink(Protocol):
    """Is told what has been read."""

    def begin(self, name: str) -> None:
        """A call of this tool has begun."""

    def add_arguments(self, text: str) -> None:
        """All its arguments; or their opening bracket, if they go on.

        The sink then takes the characters up to the end of the arguments, and has an empty text sent to the reader.
        """

    def accept(self) -> None:
        """All that was read belongs to calls."""


class CallReader:
    """One call, or a list of them.

    With ``tool_names`` only a call of one of these is a call.
    """

    def __init__(self, syntax: CallSyntax, sink: CallSink, tool_names: Collection[str] | None) -> None:
        self._syntax = syntax
        self._sink = sink
        self._tool_names = tool_names

    def calls(self) -> Reader[None]:
        """Raises `NotACall` at the first character that belongs to none."""
        char = yield from _space()
        if self._syntax.takes_name and char not in "[{":
            yield from self._named_call(char)
        elif char == "[":
            yield from _expect("{")
            yield from self._call()
            while (char := (yield from _space())) != "]":
                if char != ",":
                    raise NotACall
                yield from _expect("{")
                yield from self._call()
        elif char == "{":
            yield from self._call()
        else:
            raise NotACall

    def _call(self) -> Reader[None]:
        """An object with a name and arguments, behind its opening bracket; both keys come in any order."""
        name = arguments = None
        has_begun = False
        char = ","
        while char == ",":
            yield from _expect('"')
            key = yield from _string()
            yield from _expect(":")
            char = yield from _space()
            if key == "name" and char == '"' and name is None:
                name = yield from _string()
                self._check(name)
            elif key in ("arguments", "parameters") and char == "{" and arguments is None and not has_begun:
                if name is None:
                    arguments = yield from _object()
                else:
                    yield from self._stream(name)
                    has_begun = True
            elif key in ("type", "id") and char == '"':
                yield from _string()
            else:
                raise NotACall
            char = yield from _space()
        if char != "}" or name is None:
            raise NotACall
        if not has_begun:
            self._sink.begin(name)
            self._sink.add_arguments(arguments or "{}")
        self._sink.accept()

    def _named_call(self, char: str) -> Reader[None]:
        """``NAME[CALL_ID]ID[ARGS]{...}``, of which ``char`` is the first."""
        name = yield from _until("[", char)
        self._check(name)
        tag = yield from _until("]")
        if tag == "CALL_ID":
            yield from _until("[")
            tag = yield from _until("]")
        if tag != "ARGS":
            raise NotACall
        yield from _expect("{")
        yield from self._stream(name)

    def _stream(self, name: str) -> Reader[None]:
        self._sink.begin(name)
        self._sink.add_arguments("{")
        yield

    def _check(self, name: str) -> None:
        if not name or (self._tool_names is not None and name not in self._tool_names):
            raise NotACall


def _space() -> Reader[str]:
    """The first character that is no whitespace."""
    while (char := (yield)) in _SPACE:
        pass
    return char


def _expect(wanted: str) -> Reader[None]:
    if (yield from _space()) != wanted:
        raise NotACall


def _until(end: str, word: str = "") -> Reader[str]:
    """A word in front of ``end``, of which ``word`` was read before."""
    while len(word) < MAX_WORD and _WORD.fullmatch(word):
        char = yield
        if char == end:
            return word
        word += char
    raise NotACall


def _string() -> Reader[str]:
    """A string behind its opening quotes."""
    text, escaped = '"', False
    while True:
        char = yield
        text += char
        if len(text) > MAX_WORD:
            raise NotACall
        if char == '"' and not escaped:
            break
        escaped = char == "\\" and not escaped
    try:
        text = str(json.loads(text))
        text.encode()  # a lone surrogate is valid JSON, but no text
    except ValueError:
        raise NotACall from None
    return text


def _object() -> Reader[str]:
    """An object behind its opening bracket."""
    value, chars = JsonValue(), ["{"]
    value.end("{")
    ended = None
    while ended is None:
        chars.append((yield))
        ended = value.end(chars[-1])
    return "".join(chars)
