"""What a worker tells the process that answers probes, several times a second."""

from __future__ import annotations

import msgspec


class Load(msgspec.Struct, frozen=True):
    """How busy a worker is: ``load`` is 1.0 where its engine has as many answers as it can generate at a time.

    ``load_percent`` is how far a model is loaded, None before that begins and 100 afterwards; ``kv_use`` is a share
    from 0 to 1.
    """

    jobs: int = 0
    running: int = 0
    waiting: int = 0
    max_sequences: int = 0
    load: float = 0.0
    kv_use: float = 0.0
    tokens_per_s: float = 0.0
    load_percent: int | None = None


class HealthSnapshot(msgspec.Struct, frozen=True):
    """A worker's health at one moment. ``reason`` says why it would run no job, and is empty if it would.

    ``is_live`` is false if only a restart helps. ``metrics`` is the page for Prometheus, None where the last one told
    still holds.
    """

    is_live: bool
    state: str
    reason: str
    load: Load
    metrics: bytes | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the worker would run a job; one that is full would, once another has ended."""
        return not self.reason


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(HealthSnapshot)


def encode(snapshot: HealthSnapshot) -> bytes:
    """A frame: 4 bytes of length, big-endian, and MessagePack."""
    body = _encoder.encode(snapshot)
    return len(body).to_bytes(4, "big") + body


def decode(body: bytes) -> HealthSnapshot:
    """What is in a frame. Raises `msgspec.DecodeError`."""
    return _decoder.decode(body)
