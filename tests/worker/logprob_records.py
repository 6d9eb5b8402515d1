"""Log probabilities as engines report them, in records of bytes, and as tests say and compare them."""

from __future__ import annotations

import math
import struct
from typing import NamedTuple


class TokenLogprobs(NamedTuple):
    """Of one token, and of the likeliest ones at its place."""

    logprob: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


def record(logprobs: TokenLogprobs, num_top: int) -> bytes:
    """The record of a token of which so many alternatives were asked for."""
    num_missing = num_top - len(logprobs.top_ids)
    top_ids = (*logprobs.top_ids, *[-1] * num_missing)
    top_logprobs = (*logprobs.top_logprobs, *[-math.inf] * num_missing)
    return struct.pack(f"<f{num_top}i{num_top}f", logprobs.logprob, *top_ids, *top_logprobs)


def read(records: bytes | None, num_top: int) -> list[TokenLogprobs]:
    """What the records say, one behind the other."""
    told = []
    for logprob, *numbers in struct.iter_unpack(f"<f{num_top}i{num_top}f", records or b""):
        num_found = num_top - numbers[:num_top].count(-1)
        top_logprobs = numbers[num_top : num_top + num_found]
        told.append(TokenLogprobs(logprob, tuple(numbers[:num_found]), tuple(top_logprobs)))
    return told
