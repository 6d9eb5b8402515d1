"""Tells calls of tools from the text around them, while it comes in."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from worker.text.tools.answer_parts import AnswerParts, CallDelta
from worker.text.tools.call_reader import CallReader, NotACall, Reader
from worker.text.tools.call_syntax import CallSyntax
from worker.text.tools.json_value import JsonValue
from worker.text.tools.marker_search import MAX_SPACE, MarkerSearch
from worker.text.tools.tagged_call import GemmaCall, GlmCall, TaggedCall

MAX_HELD = 256 * 1024
"""Characters of a call whose arguments stand before its name, or are no JSON; a longer one stays text."""

_BARE = re.compile(rf"[\s;]{{0,{MAX_SPACE}}}{{")
_MAYBE_BARE = re.compile(rf"[\s;]{{0,{MAX_SPACE}}}")


class CallParser:
    """Splits text into the answer and calls. How the text is cut into pieces makes no difference.

    A call has begun when its name and the bracket that opens its arguments are there. Until then its text is held back,
    and is text of the answer if it goes on as no call does. From then on it is a call, whatever follows: its arguments
    are given as they come in, up to their closing bracket, valid or not.

    What belongs to neither is left out: markers, and whitespace before and between calls. With ``ends_with_call``
    nothing comes behind the arguments of the first call: then it ``has_ended``.
    """

    def __init__(
        self, syntax: CallSyntax, tools: Mapping[str, Mapping[str, Any]], *, ends_with_call: bool = False
    ) -> None:
        """``tools`` are the schemas of the parameters by the name of the tool."""
        self.has_ended = False
        self._syntax = syntax
        self._tools = tools
        self._ends_with_call = ends_with_call
        self._search = MarkerSearch(filter(None, [*syntax.opens, syntax.close]))
        self._parts = AnswerParts()
        self._num_calls = 0
        self._reader: Reader[None] | None = None  # of what stands around arguments
        self._value: JsonValue | None = None  # the arguments that go on
        self._held: list[str] = []  # characters that the reader has read, of which it is not known yet what they are
        self._pending = ""  # the end of text that may become a call
        self._may_be_bare = syntax.is_bare
        self._is_after_call = False

    @property
    def holds_text(self) -> bool:
        """Whether it is not known yet what the text so far is."""
        return bool(self._pending or self._held)

    def passes(self, text: str) -> bool:
        """Whether ``text`` certainly is the answer's, and leaves everything as it is; told quickly."""
        is_between = self._pending or self._reader or self._may_be_bare or self._is_after_call
        return not is_between and self._search.passes(text)

    def feed(self, text: str, parts: AnswerParts) -> None:
        """Add to ``parts`` what the text so far is known to be."""
        self._parts = parts
        text, self._pending = self._pending + text, ""
        while text and not self.has_ended:
            if self._value is not None:
                text = self._read_arguments(self._value, text)
            elif self._reader is not None:
                text = self._read(self._reader, text)
            else:
                text = self._read_text(text)

    def finish(self, parts: AnswerParts) -> None:
        """No more text will come: add what is held back."""
        rest = self._pending + "".join(self._held)
        if not self._is_after_call or "{" in rest:  # else only what stands around calls is cut short
            parts.answer += rest
        self.forget()

    def forget(self) -> None:
        """Take what is held back for text that somebody else has shown."""
        if self.holds_text:
            self._reader, self._pending = None, ""
            self._held.clear()

    def begin(self, name: str) -> None:
        """See `CallSink`."""
        self._held.clear()
        self._is_after_call = True
        self._parts.calls.append(CallDelta(self._num_calls, name))
        self._num_calls += 1

    def add_arguments(self, text: str) -> None:
        """See `CallSink`."""
        self._parts.calls.append(CallDelta(self._num_calls - 1, arguments=text))
        value = JsonValue()
        if value.end(text) is None:
            self._value = value
        else:
            self.has_ended = self._ends_with_call

    def accept(self) -> None:
        """See `CallSink`."""
        self._held.clear()

    def _read_text(self, text: str) -> str:
        if self._may_be_bare:
            if match := _BARE.match(text):
                self._open(text[: match.end() - 1], self._tools)
                return text[match.end() - 1 :]
            if _MAYBE_BARE.fullmatch(text):
                self._pending = text
                return ""
        before, found, rest = self._search.split(text)
        self._show(before)
        if not found:
            self._pending = rest
            return ""
        if found.lstrip() != self._syntax.close:
            self._open(found, None)
        elif not self._is_after_call:
            self._show(found)
        return rest

    def _show(self, text: str) -> None:
        if text:
            self._parts.answer += text
            self._may_be_bare = self._is_after_call = False

    def _open(self, marker: str, tool_names: Collection[str] | None) -> None:
        self._held.append(marker)
        self._is_after_call = False
        match self._syntax.written:
            case "json":
                self._reader = CallReader(self._syntax, self, tool_names).calls()
            case "tags":
                self._reader = TaggedCall(self, self._tools).calls()
            case "glm":
                self._reader = GlmCall(self, self._tools).calls()
            case "gemma":
                self._reader = GemmaCall(self).calls()
        next(self._reader)

    def _read(self, reader: Reader[None], text: str) -> str:
        """Have the reader read as much as is its own; returns the rest."""
        for position, char in enumerate(text, start=1):
            self._held.append(char)
            try:
                reader.send(char)
            except StopIteration:
                self._close()
                return text[position:]
            except NotACall:
                return self._reject() + text[position:]
            if self._value is not None or self.has_ended:
                return text[position:]
            if len(self._held) > MAX_HELD:
                return self._reject() + text[position:]
        return ""

    def _reject(self) -> str:
        """What is held is text; only its last character may begin something else."""
        *chars, last = self._held
        text, self._reader = "".join(chars), None
        self._held.clear()
        if self._is_after_call and text.isspace():
            return text + last
        self._show(text)
        return last

    def _close(self) -> None:
        self._reader = None
        self._held.clear()
        self._is_after_call = True
        self._may_be_bare = self._syntax.is_bare

    def _read_arguments(self, value: JsonValue, text: str) -> str:
        end = value.end(text)
        self._parts.calls.append(CallDelta(self._num_calls - 1, arguments=text[:end]))
        if end is None:
            return ""
        self._value = None
        self.has_ended = self._ends_with_call
        assert self._reader is not None, "what stands around the arguments goes on behind them"
        try:
            self._reader.send("")
        except StopIteration:
            self._close()
        return text[end:]
