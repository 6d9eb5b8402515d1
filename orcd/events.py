"""A job's events: what they are, how they are written down, and how a reader follows them without loss.

A reader subscribes to the job's channel, replays the log from where it was, and drops what it has seen; `Cursor` is
that last step. ``queued`` and ``loading`` are only published, everything else is in the log.
"""

from __future__ import annotations

import msgspec


class Queued(msgspec.Struct, frozen=True, tag_field="type", tag="queued"):
    """The job waits, or waits again; ``position`` counts from 1 and is approximate."""

    position: int


class Loading(msgspec.Struct, frozen=True, tag_field="type", tag="loading", omit_defaults=True):
    """A worker that could take the job is loading its model; ``remaining_ms`` is an estimate, once there is one."""

    percent: int
    remaining_ms: int | None = None


class Started(msgspec.Struct, frozen=True, tag_field="type", tag="started"):
    """A worker took the job; ``started_at`` is Unix time in milliseconds, ``attempt`` counts from 1."""

    job_id: str
    model: str
    started_at: int
    attempt: int


class TokenLogprob(msgspec.Struct, frozen=True):
    """Natural-log probability of a token and of the most likely ones at its place."""

    id: int
    logprob: float
    top: dict[int, float] = {}


class Token(msgspec.Struct, frozen=True, tag_field="type", tag="token", omit_defaults=True):
    """New tokens of one choice: ``ids`` have the indices i, i + 1, ... (from 1), ``t`` is exactly their text.

    Models that keep their reasoning apart have its text in ``analysis``, and text for tools in ``commentary``.
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


class End(msgspec.Struct, frozen=True, tag_field="type", tag="end"):
    """The job succeeded. ``finish_reason`` is the first choice's: ``stop`` or ``length``.

    Times in milliseconds: ``queue_ms`` from submission to the first claim, ``ttft_ms`` from that claim to the first
    token, ``decode_ms`` from the first token to the last. ``text_sha256`` is over the UTF-8 of the choices' answers,
    one after another.
    """

    finish_reason: str
    tokens_in: int
    tokens_out: int
    queue_ms: int
    ttft_ms: int
    decode_ms: int
    text_sha256: str


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
    """The inverse of `encode_event`; unknown fields are ignored, so that an older reader follows a newer writer."""
    return _decoder.decode(json)


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

    def after(self, num_tokens: int) -> Position:
        """The next event's place when ``num_tokens`` more were emitted."""
        return Position(self.n + num_tokens, 0) if num_tokens else Position(self.n, self.k + 1)


class Cursor:
    """Drops the events that a reader has seen already: the same event may come from the log and from the channel.

    Published events carry no entry id, so tokens are counted instead.
    """

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._finished: set[int] = set()
        self._attempt = 0
        self.ended = False

    @property
    def num_tokens(self) -> int:
        """Tokens seen so far, over all choices: no event below the entry id ``<num_tokens>-0`` is new."""
        return sum(self._counts.values())

    def is_new(self, event: Event) -> bool:
        """Whether the reader should see ``event``; each one is new once. Raises ValueError when tokens are missing."""
        if self.ended:
            return False
        match event:
            case Token(i=i, ids=ids, choice=choice, finish=finish):
                seen = self._counts.get(choice, 0)
                if i + len(ids) - 1 <= seen and (finish is None or choice in self._finished):
                    return False
                if i != seen + 1:
                    raise ValueError(f"tokens {seen + 1} to {i - 1} of choice {choice} are missing")
                self._counts[choice] = seen + len(ids)
                if finish is not None:
                    self._finished.add(choice)
            case Started(attempt=attempt):
                if attempt <= self._attempt:
                    return False
                self._attempt = attempt
            case End() | Error():
                self.ended = True
        return True
