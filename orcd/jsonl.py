"""JSON Lines: one object a line, for every reader."""

from __future__ import annotations

from typing import Any

import msgspec

_encoder = msgspec.json.Encoder()

# JSON leaves these as they are, and many a reader (Python's splitlines for one) takes them for the end of a line.
_LINE_ENDS = {character.encode(): f"\\u{ord(character):04x}".encode() for character in "\u0085\u2028\u2029"}


def encode(record: Any) -> bytes:
    """``record`` as JSON with a newline at its end and no other end of a line in it.

    Raises `UnicodeEncodeError` on a lone surrogate.
    """
    json = _encoder.encode(record)
    for character, escape in _LINE_ENDS.items():
        json = json.replace(character, escape)
    return json + b"\n"
