"""Blocks of the IQ2 and IQ3 formats -> float32; see `kernels.weights.dequant`.

Every number is +-magnitude / unit * (d * (2 * scale + 1)): its magnitude is a coordinate of a point of the format's
grid, its scale are 4 bits of 16 or 32 numbers. Each product is exact in float32, in whatever order it is made.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.weights.grids import IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, Grid

Float32 = NDArray[np.float32]
Integers = NDArray[np.integer[Any]]
UInt8 = NDArray[np.uint8]

_SEVEN_BITS = np.arange(128, dtype=np.uint8)
_EVEN_SIGNS = _SEVEN_BITS | (np.unpackbits(_SEVEN_BITS[:, None], axis=1).sum(axis=1, dtype=np.uint8) & 1) << 7
"""Signs of 8 numbers of which 7 are stored: an even number of them is negative."""


def iq2_xxs(blocks: UInt8, out: Float32) -> None:
    """f16 d; of every 32 numbers 4 points, and 4 times 7 signs with a scale above them."""
    words = blocks[:, 2:].reshape(-1, 8, 8)
    rest = np.ascontiguousarray(words[:, :, 4:]).view("<u4")  # [N, 8, 1]
    _expand(IQ2_XXS, words[:, :, :4], _four_signs(rest), blocks[:, :2], rest >> 28, out)


def iq2_xs(blocks: UInt8, out: Float32) -> None:
    """f16 d, 32 points of 9 bits with 7 signs above each, 16 scales."""
    points = np.ascontiguousarray(blocks[:, 2:66]).view("<u2")
    _expand(IQ2_XS, points & 511, _EVEN_SIGNS[points >> 9], blocks[:, :2], _nibbles(blocks[:, 66:]), out)


def iq2_s(blocks: UInt8, out: Float32) -> None:
    """f16 d, low 8 bits of 32 points, 256 signs, two more bits of each point, 16 scales."""
    points = _with_upper_bits(blocks[:, 2:34], blocks[:, 66:74], 2)
    _expand(IQ2_S, points, blocks[:, 34:66], blocks[:, :2], _nibbles(blocks[:, 74:]), out)


def iq3_xxs(blocks: UInt8, out: Float32) -> None:
    """f16 d, 64 points, of every 32 numbers 4 times 7 signs with a scale above them."""
    rest = np.ascontiguousarray(blocks[:, 66:]).view("<u4")[:, :, None]
    _expand(IQ3_XXS, blocks[:, 2:66], _four_signs(rest), blocks[:, :2], rest >> 28, out)


def iq3_s(blocks: UInt8, out: Float32) -> None:
    """f16 d, low 8 bits of 64 points, one more bit of each, 256 signs, 8 scales."""
    points = _with_upper_bits(blocks[:, 2:66], blocks[:, 66:74], 1)
    _expand(IQ3_S, points, blocks[:, 74:106], blocks[:, :2], _nibbles(blocks[:, 106:]), out)


def _four_signs(words: Integers) -> UInt8:
    """Signs of 32 numbers in the low 28 bits of words [..., 1] -> [..., 4]."""
    signs: UInt8 = _EVEN_SIGNS[words >> np.arange(0, 28, 7, dtype=np.uint32) & 127]
    return signs


def _nibbles(packed: UInt8) -> UInt8:
    """[N, n] -> [N, 2n], the low nibble of each byte before its high one."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], 2 * packed.shape[1])


def _with_upper_bits(low: UInt8, packed: UInt8, num_bits: int) -> Integers:
    """Indices whose low 8 bits are ``low`` [N, n]; ``packed`` has the others, the first index's lowest."""
    shifts = np.arange(0, 8, num_bits, dtype=np.uint8)
    upper = packed[:, :, None] >> shifts & (1 << num_bits) - 1
    return low | upper.reshape(low.shape).astype(np.uint16) << 8


@cache
def _points(grid: Grid) -> Float32:
    """[points, num_coordinates], as numbers of the format."""
    points = [grid.coordinates(point) for point in grid.points]
    return np.array(points, np.float32) / np.float32(grid.unit)


def _expand(grid: Grid, points: Integers, signs: UInt8, d: UInt8, scales: Integers, out: Float32) -> None:
    """``points`` and ``signs`` (bytes of 8) of N blocks, their ``d`` [N, 2] and ``scales`` [N, ...]."""
    out[:] = _points(grid)[points].reshape(out.shape)
    is_negative = np.unpackbits(signs.reshape(out.shape[0], out.shape[1] // 8), axis=1, bitorder="little") == 1
    np.negative(out, out=out, where=is_negative)
    num_groups = math.prod(scales.shape[1:])
    factors = d.view("<f2").astype(np.float32) * (2 * scales.reshape(out.shape[0], num_groups).astype(np.float32) + 1)
    groups = out.reshape(out.shape[0], num_groups, out.shape[1] // num_groups)
    groups *= factors[:, :, None]
