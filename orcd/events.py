"""A job's events: what they are, how they are written down, and how a reader follows them without loss.

A reader subscribes to the job's channel, replays the log from where it was, and drops what it has seen (see
`orcd.store.event_stream`). ``queued`` and ``loading`` are only published, everything else is in the log.
"""

from __future__ import annotations

import enum
import hashlib
import string
import struct
from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec

T = TypeVar("T")

_ID_CHARACTERS = string.digits + string.ascii_letters
_ID_LENGTH = 9  # Mistral's chat templates refuse ids of another length
_NO_ID = b"\xff" * 4  # -1


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


class Packing(enum.IntEnum):
    """What may be packed in a job's log: all who read it must know these forms. `TOKENS` are both."""

    NOTHING = 0
    LOGPROBS = 1
    TOKENS = 2


class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    """Natural-log probability of a token and of the most likely ones at its place.

    ``pieces`` are the bytes of all of these by id, in JSON as base64: a token may be a part of a character. Python's
    garbage collector skips these, as there are very many and nothing in them refers to anything.
    """

    id: int
    logprob: float
    top: dict[int, float] = {}
    pieces: dict[int, bytes] = {}


class PackedLogprobs(msgspec.Struct, frozen=True, omit_defaults=True):
    """Log probabilities of N tokens as a log may have them: a third of the bytes.

    ``records`` has for each token, little-endian, its log probability (float32), the ids of the ``num_top`` likeliest
    tokens at its place (int32, -1 where there are fewer), and theirs (float32). ``texts`` are first those of the N
    tokens, then those of the likeliest one at each of the N places, of the second likeliest ... A token that is no
    text, as it is a part of a character, is a list of bytes there. ``ids`` are the tokens; they are left out where the
    event has them.
    """

    num_top: Annotated[int, msgspec.Meta(ge=0)]
    records: bytes
    texts: list[str | list[int]]
    ids: list[int] = []

    def unpacked(self, ids: Sequence[int]) -> list[TokenLogprob]:
        """Those of the tokens ``ids``. Raises ValueError where they are of another number of tokens."""
        lengths = len(ids) * 4 * (1 + 2 * self.num_top), len(ids) * (1 + self.num_top)
        if (len(self.records), len(self.texts)) != lengths:
            raise ValueError("packed log probabilities are of another number of tokens")
        try:
            spelt = list(map(str.encode, self.texts))  # type: ignore[arg-type]
        except TypeError:  # some are parts of characters
            spelt = [text.encode() if isinstance(text, str) else bytes(text) for text in self.texts]
        return unpacked_logprobs(ids, self.num_top, self.records, spelt)


def unpacked_logprobs(ids: Sequence[int], num_top: int, records: bytes, spelt: Sequence[bytes]) -> list[TokenLogprob]:
    """Those of the tokens ``ids``; ``spelt`` are the bytes for which `PackedLogprobs` has ``texts``."""
    if not ids:
        return []
    # By columns, as there are very many tokens.
    own, *numbers = zip(*struct.iter_unpack(f"<f{num_top}i{num_top}f", records), strict=True)
    top_ids, top_logprobs = numbers[:num_top], numbers[num_top:]
    tops = _rows(top_ids, top_logprobs) if num_top else [dict[int, float]() for _ in ids]
    pieces = _rows([ids, *top_ids], [spelt[start : start + len(ids)] for start in range(0, len(spelt), len(ids))])
    if _NO_ID in records:
        for each in (*tops, *pieces):
            each.pop(-1, None)
    return list(map(TokenLogprob, ids, own, tops, pieces))


def _rows(keys: Sequence[Sequence[int]], values: Sequence[Sequence[T]]) -> list[dict[int, T]]:
    """A dict for each row of the columns."""
    return list(map(dict, map(zip, zip(*keys, strict=True), zip(*values, strict=True))))


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What comes next of the call ``index`` (from 0) of a choice: text of its arguments.

    ``id`` and ``name`` are in a call's first delta, and only there.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""

    @property
    def length(self) -> int:
        """Does not depend on how a call is cut into deltas: its characters, and one for its beginning."""
        return len(self.arguments) + bool(self.id)

    def behind(self, seen: int) -> ToolCallDelta:
        """The delta less its beginning of this `length`."""
        return ToolCallDelta(self.index, arguments=self.arguments[seen - bool(self.id) :]) if seen else self


class Token(msgspec.Struct, frozen=True, tag_field="type", tag="token", omit_defaults=True):
    """New tokens of one choice: ``ids`` have the indices i, i + 1, ... (from 1), ``t`` is exactly their text.

    Reasoning has its text in ``analysis``, calls of tools are in ``tool_calls``, and ``commentary`` is what GPT-OSS
    writes in its channel of that name and what calls no tool of the request. ``prompt_logprobs``, on the first event of
    a job's first choice, has an entry for each token of the prompt; the first one is None, and its bytes are
    ``prompt_start``. ``finish`` is the choice's finish reason, on its last event when the job has several choices.
    ``packed_logprobs`` and ``packed_prompt_logprobs`` stand for these two in logs, and are None in what is read there.
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
    prompt_logprobs: list[TokenLogprob | None] | None = None
    prompt_start: bytes = b""
    packed_logprobs: PackedLogprobs | None = None
    packed_prompt_logprobs: PackedLogprobs | None = None

    def unpacked(self) -> Token:
        """The event as readers have it. Raises ValueError for what is packed wrongly."""
        packed, of_prompt = self.packed_logprobs, self.packed_prompt_logprobs
        if packed is None and of_prompt is None:
            return self
        return msgspec.structs.replace(
            self,
            logprobs=self.logprobs if packed is None else packed.unpacked(self.ids),
            prompt_logprobs=self.prompt_logprobs if of_prompt is None else [None, *of_prompt.unpacked(of_prompt.ids)],
            packed_logprobs=None,
            packed_prompt_logprobs=None,
        )


class End(msgspec.Struct, frozen=True, tag_field="type", tag="end", omit_defaults=True):
    """The job succeeded. ``finish_reason`` is the first choice's: ``stop`` or ``length``.

    Times in milliseconds: ``queue_ms`` from submission to the first claim, ``ttft_ms`` from that claim to the first
    token, ``decode_ms`` from the first token to the last. ``text_sha256`` is over the UTF-8 of the choices' answers,
    one after another. ``schema_valid`` says whether every answer is a whole document of the form that the request asks
    for (`orcd.structured_output`), or calls of tools; it is None if that is none, and where all are calls.
    ``cached_tokens`` of ``tokens_in`` were in the prefix cache of the engine that ended the job, when the first choice
    was started there: of a job that was resumed, by its last owner. It is 0 where that one had nothing to generate any
    more, and with a worker of an older version.
    """

    finish_reason: str
    tokens_in: int
    tokens_out: int
    queue_ms: int
    ttft_ms: int
    decode_ms: int
    text_sha256: str
    schema_valid: bool | None = None
    cached_tokens: int = 0


class Error(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """The job ended without success; ``code`` is one of `orcd.errors`."""

    code: str
    message: str
    retriable: bool


Event = Queued | Loading | Started | Token | End | Error

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_list_decoder = msgspec.json.Decoder(tuple[str, int, list[int], int])
_NO_MORE = msgspec.structs.astuple(Token("", 1, []))[4:]


def encode_event(event: Event, packing: Packing = Packing.NOTHING) -> bytes:
    """The event as one line of JSON; a packed `Token` that has no more is a list of t, i, ids and choice."""
    is_token = packing == Packing.TOKENS and isinstance(event, Token)
    if is_token and (fields := msgspec.structs.astuple(event))[4:] == _NO_MORE:
        return _encoder.encode(fields[:4])
    return _encoder.encode(event)


def decode_event(json: bytes) -> Event:
    """The inverse of `encode_event`; unknown fields are ignored, so that an older reader follows a newer writer.

    Raises ValueError for what is no event.
    """
    try:
        if json.startswith(b"["):
            return Token(*_list_decoder.decode(json))
        event = _decoder.decode(json)
        return event.unpacked() if isinstance(event, Token) else event
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


def tool_call_id(job_id: str, choice: int, index: int) -> str:
    """The id of a call: always the same for the same one, so that whoever resumes a job goes on with it."""
    digest = hashlib.sha256(f"orcd:tool_call:{job_id}:{choice}:{index}".encode()).digest()
    return "".join(_ID_CHARACTERS[byte % len(_ID_CHARACTERS)] for byte in digest[:_ID_LENGTH])


def length_of_calls(deltas: Sequence[ToolCallDelta] | None) -> int:
    """See `ToolCallDelta.length`."""
    return sum(delta.length for delta in deltas or ())


def calls_behind(deltas: Sequence[ToolCallDelta] | None, seen: int) -> list[ToolCallDelta] | None:
    """The deltas less their beginning of this length; None if nothing is left."""
    rest = []
    for delta in deltas or ():
        if seen < delta.length:
            rest.append(delta.behind(seen))
        seen = max(0, seen - delta.length)
    return rest or None
