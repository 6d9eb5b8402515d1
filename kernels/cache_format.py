"""What the KV cache keeps of a head of a token, of its keys and of its values: numbers, or codes and a scale."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

MAX_CODE = 127
"""Codes are -127 to 127: with as many on both sides of 0 a head and its negative have codes of the same sizes."""


class CacheFormat(msgspec.Struct, frozen=True):
    """The type of the numbers or codes, and of the scale of a head of a token; None: there are no scales."""

    name: str  # as fingerprints have it
    dtype: np.dtype[Any]
    scale_dtype: np.dtype[Any] | None = None

    @property
    def num_arrays(self) -> int:
        """Arrays of a layer's cache."""
        return 2 if self.scale_dtype is None else 4

    def head_bytes(self, head_dim: int) -> int:
        """Bytes of a head of a token's keys, and of its values."""
        return head_dim * self.dtype.itemsize + (self.scale_dtype.itemsize if self.scale_dtype else 0)


FLOAT32 = CacheFormat("float32", np.dtype(np.float32))
FLOAT16 = CacheFormat("float16", np.dtype(np.float16))
Q8 = CacheFormat("q8", np.dtype(np.int8), np.dtype(np.float16))
"""A head of a token is codes, and a scale by which they are multiplied."""


def quantise(heads: Float32) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """`Q8` of ``heads`` [..., D]: codes [..., D] and scales [...].

    The scale is the largest magnitude / 127 in float32, rounded to float16; a code is the element / that scale in
    float32, rounded to the nearest whole number, half to even. A head with infinity or NaN, or of which the scale is
    too large for float16, has a scale that is not finite and codes of 0: it is read as NaN, and what comes of it is
    refused as any number that is not finite. A head too small for a scale is read as 0.
    """
    with np.errstate(over="ignore"):
        scales = (np.abs(heads).max(axis=-1) / np.float32(MAX_CODE)).astype(np.float16)
    divisors = scales.astype(np.float32)[..., None]
    steps = np.zeros(heads.shape, np.float32)
    np.divide(heads, divisors, out=steps, where=np.isfinite(divisors) & (divisors > 0))
    codes = np.clip(np.rint(steps), -MAX_CODE, MAX_CODE).astype(np.int8)  # beyond: a scale that is a rough subnormal
    return codes, scales


def dequantise(codes: NDArray[np.int8], scales: NDArray[np.float16]) -> Float32:
    """The heads [..., D] of ``codes`` [..., D] and ``scales`` [...]: their products in float32."""
    with np.errstate(invalid="ignore"):  # codes of a head that was not finite are 0, its scale may be infinity
        return codes.astype(np.float32) * scales.astype(np.float32)[..., None]
