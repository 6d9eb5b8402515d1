"""Splits an answer into reasoning, calls of tools and text, while it comes in."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Literal

from worker.text.tokenizer import Tokenizer
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.answer_parts import AnswerParts
from worker.text.tools.call_parser import CallParser
from worker.text.tools.marker_search import MAX_SPACE, MarkerSearch
from worker.text.tools.reasoning import ReasoningTags


class _State(Enum):
    BEFORE = auto()
    """Reasoning may begin, and nothing else has."""
    OPENED = auto()
    """Only whitespace since reasoning was opened."""
    REASONING = auto()
    CLOSED = auto()
    """Only whitespace since reasoning was closed."""
    ANSWER = auto()


class AnswerParser:
    """How the text is cut into pieces makes no difference.

    Whitespace around reasoning is left out. Text is held back only while it may become a marker or a call.
    ``marker_ids`` are control tokens whose spelling belongs to the text here.
    """

    def __init__(self, form: AnswerForm, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        """``prompt_ids`` say whether the answer begins within reasoning."""
        syntax = form.syntax if form.tool_names else None
        self._tags = form.reasoning or ReasoningTags("", "")
        self._calls = CallParser(syntax, form.tools, ends_with_call=form.ends_with_call) if syntax else None
        self._state = _State.ANSWER
        if form.reasoning:
            self._search = MarkerSearch([form.reasoning.close])
            self._state = _State.OPENED if form.reasoning.is_open(tokenizer, prompt_ids) else _State.BEFORE
        self._pending = ""
        markers = (*(syntax.markers if syntax else ()), *self._tags.markers)
        ids = {tokenizer.special_ids[marker] for marker in markers if marker in tokenizer.special_ids}
        self.marker_ids = frozenset(token_id for token_id in ids if tokenizer.is_special(token_id))

    @classmethod
    def of(cls, form: AnswerForm, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> AnswerParser | None:
        """None where there is nothing to look for."""
        has_form = form.reasoning or (form.syntax and form.tool_names)
        return cls(form, tokenizer, prompt_ids) if has_form else None

    @property
    def holds_text(self) -> bool:
        """Whether it is not known yet what the text so far is."""
        return bool(self._pending) or (self._calls is not None and self._calls.holds_text)

    @property
    def has_ended(self) -> bool:
        """Whether the call is complete with which the answer ends."""
        return self._calls is not None and self._calls.has_ended

    def passes(self, text: str) -> Literal["answer", "analysis"] | None:
        """What ``text`` is, if that is certain and it leaves everything as it is; told quickly."""
        if self._state is _State.ANSWER:
            return "answer" if self._calls is None or self._calls.passes(text) else None
        if self._state is _State.REASONING and not self._pending and self._search.passes(text):
            return "analysis"
        return None

    def feed(self, text: str, parts: AnswerParts) -> None:
        """Add to ``parts`` what the text so far is known to be."""
        text, self._pending = self._pending + text, ""
        while text:
            match self._state:
                case _State.BEFORE:
                    text = self._begin(text)
                case _State.OPENED | _State.CLOSED:
                    text = text.lstrip()
                    if text:
                        is_opened = self._state is _State.OPENED
                        self._state = _State.REASONING if is_opened else _State.ANSWER
                case _State.REASONING:
                    text = self._read_reasoning(text, parts)
                case _State.ANSWER:
                    self._add_answer(text, parts)
                    text = ""

    def finish(self, parts: AnswerParts) -> None:
        """No more text will come: add what is held back."""
        if self._state is _State.REASONING:
            parts.analysis += self._pending
        elif self._pending:
            self._add_answer(self._pending, parts)
        self._pending = ""
        if self._calls is not None:
            self._calls.finish(parts)

    def forget(self) -> None:
        """Take what is held back for text that somebody else has shown."""
        self._pending = ""
        if self._calls is not None:
            self._calls.forget()

    def _begin(self, text: str) -> str:
        begun = text.lstrip()
        if len(text) - len(begun) <= MAX_SPACE:
            if begun.startswith(self._tags.open):
                self._state = _State.OPENED
                return begun.removeprefix(self._tags.open)
            if self._tags.open.startswith(begun):
                self._pending = text
                return ""
        self._state = _State.ANSWER
        return text

    def _read_reasoning(self, text: str, parts: AnswerParts) -> str:
        before, found, rest = self._search.split(text)
        parts.analysis += before
        if found:
            self._state = _State.CLOSED
            return rest
        self._pending = rest
        return ""

    def _add_answer(self, text: str, parts: AnswerParts) -> None:
        if self._calls is None:
            parts.answer += text
        else:
            self._calls.feed(text, parts)
