"""The text of one choice as its tokens come in: UTF-8 safe, told from reasoning and calls, cut at stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from orcd.errors import InvalidRequest
from worker.text.harmony import Channels
from worker.text.tokenizer import Tokenizer
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.answer_parser import AnswerParser
from worker.text.tools.answer_parts import AnswerParts, CallDelta, joined

ALL_TEXT = AnswerForm()
"""Of an answer in which neither calls nor reasoning are looked for."""
_MOST_PARSED = 64
"""Ids that are looked at together where markers or borders of messages may be among them."""
_MOST_TRIES = 4
"""How often one less is looked at, as the last may be whitespace before a marker; then they are looked at singly."""


class TextDelta(msgspec.Struct, frozen=True):
    """What may be shown now: the text of the next ``num_ids`` token ids that were not released before.

    ``text`` belongs to the answer, ``analysis`` is reasoning, ``calls`` has a delta for each call of a tool that begins
    or goes on, and ``commentary`` is only there in GPT-OSS's channel. ``stopped`` says that a stop string was found, or
    that a call is complete with which the answer ends: this delta is the last.
    """

    text: str
    num_ids: int
    stopped: bool = False
    analysis: str = ""
    commentary: str = ""
    calls: tuple[CallDelta, ...] = ()


class Detokenizer:
    """Turns ids into text that never has to be taken back.

    **What is held back.** Bytes that may still become a character; text that may still become a marker or a call of a
    tool (`worker.text.tools`); and text that may still become a stop string: the longest end of the text so far with
    which some stop string begins. An id is released when nothing held back belongs to it or to an id before it, so the
    text of a released id is final, and whole. A stop string that may begin in the middle of a token's text thus holds
    the token's earlier text too.

    **Borders.** Nothing is held back at the end of a released id, and no stop string that is found later can begin
    before it. So a log of released (ids, text) may be cut after any delta: a new detokenizer that is told the logged
    ids by `restore` and then fed the same further ids shows the same further text.

    **Stop strings** are looked for in the answer's text, across token borders. The one that is complete first counts;
    of two complete at the same character, the one that begins first. The text before it is released with
    ``stopped``, together with all ids up to the one that completes it. One that the first ``min_tokens`` ids complete
    does not count. How ids are dealt out to calls of `feed` makes no difference.

    Control tokens have no text. All deltas' ``text`` together is ``tokenizer.decode(ids, skip_special=True)``, cut at
    the first stop string; only a space in front that stands in the middle of a sentence is kept: ``prompt_ids`` says
    what came before. For models with channels it also says in which channel the answer begins; there each message is
    decoded for itself, and a stop string does not reach from one into the next. Reasoning and calls are not in it, nor
    what stands around them; a control token that would begin one and does not is spelt out.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        prompt_ids: Sequence[int] = (),
        min_tokens: int = 0,
        include_stop: bool = False,
        skip_special: bool = True,
        form: AnswerForm = ALL_TEXT,
    ) -> None:
        """Raises `InvalidRequest` if a stop string is empty.

        With ``include_stop`` the stop string that is found belongs to the answer. Without ``skip_special`` control
        tokens are spelt out and all is text: tokens that end an answer are shown only with ``include_stop``. ``form``
        says which calls and reasoning to look for.
        """
        if not all(stop):
            raise InvalidRequest("stop must not hold an empty string")
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._min_tokens = min_tokens
        self._num_ids = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._include_stop = include_stop
        self._skip_special = skip_special
        self._channels = self._parser = None
        if skip_special:
            self._channels = Channels.of(tokenizer, prompt_ids, form)
            self._parser = None if self._channels else AnswerParser.of(form, tokenizer, prompt_ids)
        begins = not prompt_ids or tokenizer.is_special(prompt_ids[-1])
        self._strips_space = begins and tokenizer.strips_leading_space
        self._held: list[_Token] = []
        self._window = ""  # the answer's text in ``_held``
        self._stopped = False

    def feed(self, token_ids: Sequence[int]) -> TextDelta:
        """Take the next ids; those after the one that completes a stop string, or the last call, are ignored."""
        assert not self._stopped, "nothing follows a stop string"
        released = _Released()
        position = 0
        while position < len(token_ids) and not self._stopped:
            is_plain = not (self._held or self._stop or self._strips_space) and self._skip_special
            num_whole = self._add_whole(token_ids, position, released) if is_plain else 0
            self._num_ids += num_whole or 1
            if not num_whole:
                self._add(self._decode(token_ids[position]), released)
            position += num_whole or 1
        return released.to_delta(stopped=self._stopped)

    def finish(self) -> TextDelta:
        """Release all that is held back: no more ids will come. Half a character becomes U+FFFD."""
        released = _Released()
        if self._held:
            num_ids, parts = len(self._held), AnswerParts()
            self._append(self._decoder.decode(b"", True), parts)
            if self._parser:
                self._parser.finish(parts)
            self._add(_Token(parts, ends_message=True), released)
            released.num_ids = num_ids
        return released.to_delta(stopped=self._stopped)

    def restore(self, logged_ids: Sequence[int]) -> None:
        """Go on, with a new detokenizer, after ids that another one has released."""
        assert not self._held
        self._num_ids += len(logged_ids)
        shown, position, is_known = _Released(), 0, True
        while position < len(logged_ids):
            is_plain = is_known and self._skip_special and not self._strips_space
            num_whole = self._add_whole(logged_ids, position, shown) if is_plain else 0
            if not num_whole:
                is_known = self._decode(logged_ids[position]).is_known
            position += num_whole or 1
        if self._parser:
            self._parser.forget()

    def _add_whole(self, token_ids: Sequence[int], start: int, released: _Released) -> int:
        """Release as many ids from ``start`` on as need not be held, and return how many. Few are left.

        The short way, for most of what is generated: token by token takes several times as long.
        """
        least, most = start, len(token_ids)
        if self._channels or self._parser:
            most = min(most, start + _MOST_PARSED)
            least = max(start, most - _MOST_TRIES)
            if not self._has_text_only(token_ids[start:most]):
                return 0
        for end in range(most, least, -1):
            data = self._tokenizer.shown_bytes(token_ids[start:end])
            text, num_decoded = codecs.utf_8_decode(data, "replace", False)
            if num_decoded == len(data) and self._add_text(text, released):
                released.num_ids += end - start
                return end - start
        return 0

    def _has_text_only(self, token_ids: Sequence[int]) -> bool:
        """Whether text goes on, as far as can be told from the tokens alone."""
        if self._channels:
            return self._channels.channel is not None and self._channels.border_ids.isdisjoint(token_ids)
        parser = self._parser
        return parser is None or (parser.passes("") is not None and parser.marker_ids.isdisjoint(token_ids))

    def _add_text(self, text: str, released: _Released) -> bool:
        """Add the text if it is certain what it is."""
        kind = self._parser.passes(text) if self._parser else "answer"
        if self._channels:
            self._channels.add(text, released)
        elif kind == "answer":
            released.answer += text
        elif kind == "analysis":
            released.analysis += text
        return kind is not None

    def _decode(self, token_id: int) -> _Token:
        """The token with what is known by it."""
        parts = AnswerParts()
        if self._channels:
            is_border = token_id in self._channels.border_ids
            if is_border:
                self._channels.add(self._decoder.decode(b"", True), parts)
            self._channels.advance(token_id, parts)
            if is_border:
                return _Token(parts, ends_message=True)
        is_header = self._channels is not None and self._channels.channel is None
        is_marker = self._parser is not None and token_id in self._parser.marker_ids
        if is_header or (not is_marker and self._is_hidden(token_id)):
            data = b""
        else:
            data = self._tokenizer.token_bytes(token_id)
            if self._strips_space:
                data = data.removeprefix(b" ")
                self._strips_space = False
        self._append(self._decoder.decode(data), parts)
        is_known = not self._decoder.getstate()[0] and not (self._parser and self._parser.holds_text)
        return _Token(parts, is_known)

    def _append(self, text: str, parts: AnswerParts) -> None:
        if self._channels:
            self._channels.add(text, parts)
        elif self._parser:
            self._parser.feed(text, parts)
        else:
            parts.answer = text

    def _is_hidden(self, token_id: int) -> bool:
        if self._skip_special or (token_id in self._tokenizer.end_ids and not self._include_stop):
            return self._tokenizer.is_special(token_id)
        return False

    def _add(self, token: _Token, released: _Released) -> None:
        """Hold ``token``, then release what need not be held any longer."""
        self._held.append(token)
        cut = None
        if token.content.answer:
            searched = len(self._window)
            self._window += token.content.answer
            cut = self._find_stop(searched)
        calls = self._channels or self._parser
        if cut is None and calls and calls.has_ended:
            cut = len(self._window)
        if cut is not None:
            self._stopped = True
            released.add(self._held, answer=self._window[:cut])
            self._held.clear()
            return
        if not token.is_known:
            return
        possible = 0 if token.ends_message else self._possible_stop()
        after = 0  # characters of the window behind the border that is looked at
        for border in range(len(self._held), 0, -1):
            token = self._held[border - 1]
            if token.is_known and after >= possible:
                end = len(self._window) - after
                released.add(self._held[:border], answer=self._window[:end])
                del self._held[:border]
                self._window = self._window[end:]
                return
            after += len(token.content.answer)

    def _find_stop(self, searched: int) -> int | None:
        """Where in the window the answer ends, if behind ``window[:searched]`` a stop string is complete."""
        if self._num_ids <= self._min_tokens:
            return None
        found = []
        for stop in self._stop:
            start = self._window.find(stop, max(0, searched - len(stop) + 1))
            if start >= 0:
                found.append((start + len(stop), start))
        if not found:
            return None
        end, start = min(found)
        return end if self._include_stop else start

    def _possible_stop(self) -> int:
        """Length of the longest end of the window with which a stop string begins."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._window)), longest, -1):
                if self._window.endswith(stop[:length]):
                    longest = length
                    break
        return longest


@dataclass(frozen=True, slots=True)
class _Token:
    """One id: ``content`` is what is known by it, of which some may have begun before it.

    ``is_known`` says that behind it nothing is left that is half a character, or may become a marker or a call.
    """

    content: AnswerParts
    is_known: bool = True
    ends_message: bool = False


class _Released(AnswerParts):
    """A `TextDelta` that is being put together."""

    num_ids: int = 0

    def add(self, tokens: Sequence[_Token], answer: str) -> None:
        """``answer`` stands for the answer's text in those tokens."""
        self.num_ids += len(tokens)
        self.answer += answer
        for token in tokens:
            self.analysis += token.content.analysis
            self.commentary += token.content.commentary
            self.calls += token.content.calls

    def to_delta(self, *, stopped: bool) -> TextDelta:
        calls = joined(self.calls) if self.calls else ()
        return TextDelta(self.answer, self.num_ids, stopped, self.analysis, self.commentary, calls)
