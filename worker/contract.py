"""What crosses the boundary between the Celery process and the engine process.

Frames are a 4-byte big-endian length followed by a MessagePack array whose first element is the tag of one of the
structs below. The Celery side sends `Request` frames, the engine answers with `Event` frames::

    Celery side                         engine process (python -m worker)
                    <-- Load(percent), ... , Ready(limits)
    Add, Abort      -->
                    <-- Outputs(tokens of all sequences), Stats
    Shutdown        -->                 drains nothing: the token log lets another engine go on
                    <-- Fatal(code)     load failed or the device is lost; the process then exits

Beside the socket there is a file in memory, into which the engine writes which requests its steps are about
(`encode_in_flight`). Nobody reads it until the engine has died.

Token ids in, token ids out: no text crosses but the grammar that an answer must keep to. One `Add` holds the prompt
and, for every choice, the ids that are already in the job's token log, so a resumed job is the same message as a new
one.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import msgspec

from orcd.sampling import EngineSampling

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""A longer frame is a protocol error: the longest legal one is a prompt of a few hundred thousand ids."""

FinishReason = Literal["stop", "length", "abort", "error"]


class Sampling(EngineSampling, frozen=True, array_like=True):
    """How the next token is drawn; see `worker.engine` for the order in which these are applied.

    `orcd.sampling` says what each parameter is. ``seed`` is an unsigned 64-bit number; choice ``c`` of a request draws
    with seed ``(seed + c) mod 2**64``, so that ``n`` choices are the same as ``n`` requests with consecutive seeds.
    ``stop_token_ids`` end the sequence: the model's own end tokens are among them unless the request ignores those,
    because only the Celery side knows the vocabulary. Before ``min_tokens`` were emitted they cannot be drawn.
    ``logprobs`` is the number of alternatives reported with each token; ``None`` reports none at all, 0 only the chosen
    token's. ``bad_words`` are ids that the output never holds one after the other.
    ``prompt_logprobs`` is as ``logprobs``, for the tokens of the prompt.
    """


class Choice(msgspec.Struct, frozen=True, array_like=True):
    """One continuation of a request's prompt; ``output_ids`` were emitted by an earlier owner."""

    index: int
    output_ids: tuple[int, ...] = ()


class Add(msgspec.Struct, frozen=True, array_like=True, tag="add"):
    """Start (or resume) generation. A second Add of a live ``request_id`` is answered by error outputs."""

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    choices: tuple[Choice, ...] = (Choice(0),)
    priority: int = 0  # lower is more urgent, as in Celery's Redis transport
    grammar: str = ""  # what every choice must be, in the language of `worker.text.grammar`; empty: anything


class Abort(msgspec.Struct, frozen=True, array_like=True, tag="abort"):
    """Stop one choice (a stop string was found), or all of them; unknown ids are ignored."""

    request_id: str
    choice: int | None = None


class Shutdown(msgspec.Struct, frozen=True, array_like=True, tag="shutdown"):
    """Exit cleanly after the current step."""


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """What answers cost the engine: tokens found in the prefix cache, and how often they gave their KV blocks back."""

    prefix_hit_tokens: int = 0
    preemptions: int = 0

    def plus(self, other: Usage | None) -> Usage:
        """Both together."""
        if other is None:
            return self
        return Usage(self.prefix_hit_tokens + other.prefix_hit_tokens, self.preemptions + other.preemptions)


class TokenOutput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one step or several did for one choice: new ids and, at the end, why it ended.

    A token that ends the sequence (end-of-text, stop token) is the last of ``ids``: it counts as emitted.
    ``finish_reason`` "error" comes with ``error_code`` and ``error_message`` and no ids. ``usage`` comes with the last
    output of a choice that was in the engine. ``prompt_logprobs`` come once, with the first output of the request's
    first choice in the engine: one for each token of the prompt but the first. ``cached_tokens`` says, with every
    token, how many of the prompt's were in the prefix cache when the choice was started in this engine.

    **Log probabilities** are natural ones, before temperature and filters, after penalties, bias and what a grammar
    allows; those of a prompt are the model's own. For each token there is a record of `logprob_record_bytes`, one
    behind the other, little-endian: the token's own log probability (float32), the ids of the so many likeliest tokens
    that were asked for, the likeliest first (int32), and theirs (float32). Where fewer tokens can be drawn than were
    asked for, the ids left are -1.
    """

    request_id: str
    choice: int
    ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: bytes | None = None
    error_code: str | None = None
    error_message: str | None = None
    usage: Usage | None = None
    prompt_logprobs: bytes | None = None
    cached_tokens: int = 0


class Load(msgspec.Struct, frozen=True, array_like=True, tag="load"):
    """Load progress, 0 to 100 percent, with bytes of weights read so far and the time that the rest may take.

    ``remaining_ms`` is None while there is nothing to estimate it from.
    """

    percent: int
    num_bytes: int
    total_bytes: int
    remaining_ms: int | None = None


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """The engine takes requests. ``max_sequence_tokens`` bounds prompt + output of one choice.

    ``fingerprint`` says what the tokens depend on besides the request (`worker.fingerprint`).
    """

    model: str
    architecture: str
    device: str
    vocab_size: int
    context_length: int
    max_sequence_tokens: int
    max_sequences: int
    load_ms: int
    memory_bytes: int
    pid: int
    fingerprint: str


class Outputs(msgspec.Struct, frozen=True, array_like=True, tag="outputs"):
    """What one step emitted, or what several did, each choice's tokens in one, then its error."""

    outputs: tuple[TokenOutput, ...]


STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Sizes that steps are counted by, in tokens: a step counts for the first that it does not exceed."""


class StepSizes(msgspec.Struct, frozen=True, array_like=True):
    """Steps by the number of tokens that they computed: how many for each of `STEP_TOKENS`, and of more tokens yet."""

    counts: tuple[int, ...] = (0,) * (len(STEP_TOKENS) + 1)
    tokens: int = 0
    """Of all these steps."""


class Stats(msgspec.Struct, frozen=True, array_like=True, tag="stats"):
    """Counters and gauges, sent about once a second while there is work and with every heartbeat when idle."""

    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    steps: int
    prompt_tokens: int
    output_tokens: int
    prefix_hit_tokens: int
    preemptions: int
    memory_bytes: int
    healthy: bool = True
    lacks_blocks: bool = False
    """Whether a sequence waits because there are too few KV blocks for it, and not for its turn."""
    step_s: float = 0.0
    """Time in steps."""
    host_s: float = 0.0
    """Processor time of the thread that makes the steps, which on the CPU device includes most of them."""
    step_tokens: StepSizes = StepSizes()
    forced_tokens: int = 0
    """Of ``output_tokens``: those that grammars left no choice about, which were not drawn."""
    state_slots_used: int = 0
    """Slots for the states of recurrent layers that running sequences hold; snapshots lie in free ones."""
    state_slots_total: int = 0
    """0: the model has no recurrent layers."""


class Fatal(msgspec.Struct, frozen=True, array_like=True, tag="fatal"):
    """The engine cannot go on; it exits after this frame. ``code`` is one of `orcd.errors`."""

    code: str
    message: str


Request = Add | Abort | Shutdown
Event = Load | Ready | Outputs | Stats | Fatal

_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_event_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)
_ids_decoder: msgspec.msgpack.Decoder[frozenset[str]] = msgspec.msgpack.Decoder(frozenset[str])


def encode(frame: Request | Event) -> bytes:
    """One frame, length prefix included."""
    body = _encoder.encode(frame)
    return len(body).to_bytes(4, "big") + body


def decode_request(body: bytes | memoryview) -> Request:
    """Decode a frame's body on the engine side; raises `msgspec.DecodeError` or `msgspec.ValidationError`."""
    return _request_decoder.decode(body)


def decode_event(body: bytes | memoryview) -> Event:
    """Decode a frame's body on the Celery side; raises `msgspec.DecodeError` or `msgspec.ValidationError`."""
    return _event_decoder.decode(body)


def join_outputs(run: Sequence[TokenOutput]) -> TokenOutput:
    """What several steps did for one choice, as one output. ``run`` holds no errors, or one error alone."""
    if len(run) == 1:
        return run[0]
    # List comprehensions and no msgspec.structs.replace: with 256 sequences in a step this is called often.
    last = run[-1]
    ids = tuple([token_id for output in run for token_id in output.ids])
    logprobs = b"".join([output.logprobs or b"" for output in run])
    return TokenOutput(
        last.request_id,
        last.choice,
        ids,
        last.finish_reason,
        logprobs or None,
        usage=last.usage,
        prompt_logprobs=run[0].prompt_logprobs,
        cached_tokens=run[0].cached_tokens,
    )


def logprob_record_bytes(num_top: int) -> int:
    """Bytes of a token's log probabilities in a `TokenOutput`, with those of ``num_top`` others."""
    return 4 + 8 * num_top


def encode_in_flight(request_ids: Collection[str]) -> bytes:
    """What the engine's in-flight file begins with: length and CRC-32 (big-endian, 4 bytes each), then the ids."""
    body = _encoder.encode(request_ids)
    return len(body).to_bytes(4, "big") + zlib.crc32(body).to_bytes(4, "big") + body


def decode_in_flight(content: bytes) -> frozenset[str]:
    """The ids that `encode_in_flight` wrote; none if there are none, or if the engine died while it wrote them."""
    length, checksum = int.from_bytes(content[:4], "big"), int.from_bytes(content[4:8], "big")
    body = content[8 : 8 + length]
    if zlib.crc32(body) != checksum:
        return frozenset()
    try:
        return _ids_decoder.decode(body)
    except msgspec.MsgspecError:
        return frozenset()


class FrameSplitter:
    """Cuts a byte stream into frame bodies; keeps the tail until the rest of it arrives."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield every body completed by ``chunk``; raises ValueError on a length over `MAX_FRAME_BYTES`."""
        self._buffer += chunk
        start = 0
        try:
            while len(self._buffer) - start >= 4:
                length = int.from_bytes(self._buffer[start : start + 4], "big")
                if length > MAX_FRAME_BYTES:
                    raise ValueError(f"frame of {length} bytes; at most {MAX_FRAME_BYTES} are allowed")
                end = start + 4 + length
                if len(self._buffer) < end:
                    break
                body = bytes(self._buffer[start + 4 : end])
                start = end
                yield body
        finally:
            del self._buffer[:start]
