"""A job's events: what they are, how they are written down, and how a reader follows them without loss.

A reader subscribes to the job's channel, replays the log from where it was, and drops what it has seen; `Cursor` is
that last step. ``queued`` and ``loading`` are only published, everything else is in the log.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import defaultdict

import msgspec

from orcd import tool_calls
from orcd.tool_calls import ToolCallDelta


class Queued(msgspec.Struct, frozen=True, tag_field="type", tag="queued", omit_defaults=True):
    """The job waits, or waits again; ``position`` counts from 1 and is approximate.

    ``served`` is false while no worker serves the model that the job asks for. ``reason`` says for people why it waits:
    for a worker that serves the model, for one that loads it, or for a free slot.
    """

    position: int
    served: bool = True
    reason: str = ""


class Loading(msgspec.Struct, frozen=True, tag_field="type", tag="loading", omit_defaults=True):
    """A worker that could take the job is loading its model; ``remaining_ms`` is an estimate, once there is one."""

    percent: int
    remaining_ms: int | None = None


class Started(msgspec.Struct, frozen=True, tag_field="type", tag="started", omit_defaults=True):
    """A worker took the job; ``started_at`` is Unix time in milliseconds, ``attempt`` counts from 1.

    ``fingerprint`` names the model file and the kind of device that the tokens after it come from.
    """

    job_id: str
    model: str
    started_at: int
    attempt: int
    fingerprint: str = ""


class TokenLogprob(msgspec.Struct, frozen=True):
    """Natural-log probability of a token and of the most likely ones at its place.

    ``pieces`` are the bytes of all of these by token id, in JSON as base64: a token may be a part of a character.
    """

    id: int
    logprob: float
    top: dict[int, float] = {}
    pieces: dict[int, bytes] = {}


class Token(msgspec.Struct, frozen=True, tag_field="type", tag="token", omit_defaults=True):
    """New tokens of one choice: ``ids`` have the indices i, i + 1, ... (from 1), ``t`` is exactly their text.

    Reasoning has its text in ``analysis``, calls of tools are in ``tool_calls``, and ``commentary`` is what GPT-OSS
    writes in its channel of that name and what calls no tool of the request.
    ``finish`` is the choice's finish reason, on its last event when the job has several choices.
    """

    t: str
    i: int
    ids: list[int]
    choice: int = 0
    finish: str | None = None
    analysis: str = ""
    commentary: str = ""
    logprobs: list[TokenLogprob] | None = None
    tool_calls: list[ToolCallDelta] | None = None


class End(msgspec.Struct, frozen=True, tag_field="type", tag="end", omit_defaults=True):
    """The job succeeded. ``finish_reason`` is the first choice's: ``stop`` or ``length``.

    Times in milliseconds: ``queue_ms`` from submission to the first claim, ``ttft_ms`` from that claim to the first
    token, ``decode_ms`` from the first token to the last. ``text_sha256`` is over the UTF-8 of the choices' answers,
    one after another. ``schema_valid`` says whether every answer is a whole document of the form that the request asks
    for (`orcd.structured_output`); it is None if that is none.
    """

    finish_reason: str
    tokens_in: int
    tokens_out: int
    queue_ms: int
    ttft_ms: int
    decode_ms: int
    text_sha256: str
    schema_valid: bool | None = None


class Error(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """The job ended without success; ``code`` is one of `orcd.errors`."""

    code: str
    message: str
    retriable: bool


Event = Queued | Loading | Started | Token | End | Error

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """The event as one line of JSON."""
    return _encoder.encode(event)


def decode_event(json: bytes) -> Event:
    """The inverse of `encode_event`; unknown fields are ignored, so that an older reader follows a newer writer.

    Raises ValueError for what is no event.
    """
    try:
        return _decoder.decode(json)
    except RecursionError:
        raise ValueError("the event is nested too deeply") from None


def state_after(event: Event) -> str:
    """The job state that a terminal event ends in; '' for any other event."""
    match event:
        case End():
            return "succeeded"
        case Error(code="CANCELLED"):
            return "cancelled"
        case Error(code="EXPIRED"):
            return "expired"
        case Error():
            return "failed"
        case _:
            return ""


class Position(msgspec.Struct, frozen=True, order=True, array_like=True):
    """Where an event stands in the log: the entry id ``<n>-<k>``."""

    n: int = 0
    k: int = 0

    @classmethod
    def parse(cls, entry_id: bytes) -> Position:
        """From Redis's form of it."""
        n, k = entry_id.split(b"-")
        return cls(int(n), int(k))

    @property
    def text(self) -> str:
        """Redis's form of it."""
        return f"{self.n}-{self.k}"

    def after(self, num_tokens: int) -> Position:
        """The next event's place when ``num_tokens`` more were emitted."""
        return Position(self.n + num_tokens, 0) if num_tokens else Position(self.n, self.k + 1)


class Cursor:
    """Says what of each event a reader has not seen: the same event may come from the log and from the channel.

    Published events carry no entry id, so tokens are counted instead. When Redis has forgotten the end of a log, the
    job's owner generates it again, and one of the new events may begin within what was seen: it is cut there.
    """

    def __init__(self) -> None:
        self._choices: defaultdict[int, _SeenChoice] = defaultdict(_SeenChoice)
        self._last_start = (0, 0)
        self.ended = False

    @property
    def num_tokens(self) -> int:
        """Tokens seen so far, over all choices: no event below the entry id ``<num_tokens>-0`` is new."""
        return sum(choice.num_tokens for choice in self._choices.values())

    def new_part(self, event: Event) -> Event | None:
        """What of ``event`` is new, None if nothing is: each event is new once.

        Raises ValueError when tokens before it are missing, or it cannot be told what of it is new.
        """
        if self.ended:
            return None
        match event:
            case Token(choice=choice):
                return self._choices[choice].new_part(event)
            case Started(attempt=attempt, started_at=started_at):
                if (attempt, started_at) <= self._last_start:
                    return None
                self._last_start = attempt, started_at
            case End() | Error():
                self.ended = True
        return event


class _SeenChoice:
    """The last tokens of one choice, and where in its texts they begin and end as far as events have shown that."""

    MAX_TOKENS = 4096

    def __init__(self) -> None:
        self.num_tokens = 0
        self._finished = False
        self._ids = array("q")
        # At the border behind so many tokens: the lengths of text, analysis, commentary and calls up to there.
        self._borders = array("q", [0])
        self._lengths = tuple(array("q", [0]) for _ in range(4))

    def new_part(self, event: Token) -> Token | None:
        seen, last = self.num_tokens, event.i + len(event.ids) - 1
        if event.i > seen + 1:
            raise ValueError(f"tokens {seen + 1} to {event.i - 1} of choice {event.choice} are missing")
        self._compare(event, min(seen, last))
        if last <= seen:
            self._note_border(event, last)
            if event.finish is None or self._finished:
                return None
        new = self._without_seen(event, seen - event.i + 1)
        self._finished |= event.finish is not None
        if new.ids:
            self._ids.extend(new.ids)
            self.num_tokens = last
            self._note_border(event, last)
            self._forget()
        return new

    def _compare(self, event: Token, last_seen: int) -> None:
        """Raises ValueError if tokens that were seen are others in ``event``."""
        first_kept = self.num_tokens - len(self._ids) + 1
        start = max(event.i, first_kept)
        num_tokens = last_seen - start + 1
        if num_tokens <= 0:
            return
        known = self._ids[start - first_kept :][:num_tokens].tolist()
        if known != event.ids[start - event.i :][:num_tokens]:
            raise ValueError(f"tokens from {start} of choice {event.choice} are others than before")

    def _without_seen(self, event: Token, num_seen: int) -> Token:
        """The event less its first tokens. Raises ValueError if it is not known which of its text is theirs."""
        if not num_seen:
            return event
        if num_seen == len(event.ids):  # only that it is the choice's last event is new
            return Token("", self.num_tokens + 1, [], event.choice, event.finish)
        start, end = self._lengths_at(event.i - 1), self._lengths_at(self.num_tokens)
        if start is None or end is None:
            raise ValueError(f"the text of token {event.i} of choice {event.choice} cannot be told from the next ones")
        text, analysis, commentary, calls = (after - before for before, after in zip(start, end, strict=True))
        return msgspec.structs.replace(
            event,
            t=event.t[text:],
            i=self.num_tokens + 1,
            ids=event.ids[num_seen:],
            analysis=event.analysis[analysis:],
            commentary=event.commentary[commentary:],
            logprobs=event.logprobs and event.logprobs[num_seen:],
            tool_calls=tool_calls.behind(event.tool_calls or (), calls) or None,
        )

    def _note_border(self, event: Token, last: int) -> None:
        start = self._lengths_at(event.i - 1)
        if start is None or self._lengths_at(last) is not None:
            return
        place = bisect_left(self._borders, last)
        self._borders.insert(place, last)
        added = len(event.t), len(event.analysis), len(event.commentary), tool_calls.length(event.tool_calls or ())
        for lengths, before, length in zip(self._lengths, start, added, strict=True):
            lengths.insert(place, before + length)

    def _lengths_at(self, border: int) -> tuple[int, ...] | None:
        place = bisect_left(self._borders, border)
        if place == len(self._borders) or self._borders[place] != border:
            return None
        return tuple(lengths[place] for lengths in self._lengths)

    def _forget(self) -> None:
        if len(self._ids) < 2 * self.MAX_TOKENS:
            return
        del self._ids[: -self.MAX_TOKENS]
        place = bisect_left(self._borders, self.num_tokens - self.MAX_TOKENS)
        for kept in (self._borders, *self._lengths):
            del kept[:place]
