"""Blocks of quantised numbers -> float32, for every row of `kernels.weights.formats`; bit for bit as ``gguf.quants``.

Each `_<format>` takes blocks [N, block_bytes] uint8 and fills ``out`` [N, block_elements] float32. Layouts are ggml's
(``ggml-common.h``), formulas those of ``dequantize_row_*`` in ``ggml-quants.c``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kernels.weights import grid_dequant
from kernels.weights.formats import IQ4_NUMBERS, Codes, Format, Scaling

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

# E2M1 values, doubled so that they are integers; the scale below is halved to match.
MXFP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
IQ4_VALUES = np.array(IQ4_NUMBERS, np.float32)


def dequantise(format_: Format, blocks: UInt8, *, out: Float32) -> None:
    """Expand ``blocks`` [..., row_bytes] (contiguous) into ``out`` [..., row_elements] (contiguous).

    Scales may be anything a file holds: infinities and NaN pass through without a warning.
    """
    assert out.flags.c_contiguous and out.size * format_.block_bytes == blocks.size * format_.block_elements
    with np.errstate(over="ignore", invalid="ignore"):
        _EXPAND[format_.name](
            blocks.reshape(-1, format_.block_bytes), out.reshape(-1, format_.block_elements)
        )  # both are views


def is_finite(format_: Format, blocks: UInt8) -> bool:
    """Whether ``blocks`` [..., row_bytes] expand to finite numbers only; looks at scales, not at what they scale."""
    blocks = blocks.reshape(-1, format_.block_bytes)
    scales, supers = blocks[:, format_.scales_at :], blocks[:, format_.super_at :]
    match format_.scaling:
        case Scaling.UNSCALED:
            return _ARE_FINITE[format_.codes](blocks)
        case Scaling.SCALE:
            return _are_finite_halves(scales[:, :2])
        case Scaling.SCALE_MIN:
            return _are_finite_halves(scales[:, :4])
        case Scaling.SUPER_SCALES | Scaling.SUPER_SCALES_32 | Scaling.ODD_SCALES:
            return _are_finite_halves(supers[:, :2])
        case Scaling.SUPER_MINS | Scaling.SUPER_MINS_16:
            return _are_finite_halves(supers[:, :4])
        case Scaling.EXPONENT:
            return bool((scales[:, 0] < 253).all())  # 12 * 2**125 is beyond float32


def _half(column: UInt8) -> Float32:
    return column.view("<f2").astype(np.float32)


def _nibbles(packed: UInt8, out: Float32) -> None:
    """Low nibbles first, then high: [N, n] -> [N, 2n]."""
    half = packed.shape[1]
    out[:, :half] = packed & 15
    out[:, half:] = packed >> 4


def _f32(blocks: UInt8, out: Float32) -> None:
    out[:] = blocks.view("<f4")


def _f16(blocks: UInt8, out: Float32) -> None:
    out[:] = blocks.view("<f2")


def _bf16(blocks: UInt8, out: Float32) -> None:
    np.left_shift(blocks.view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)


def _q4_0(blocks: UInt8, out: Float32) -> None:
    _nibbles(blocks[:, 2:], out)
    out -= 8
    out *= _half(blocks[:, :2])


def _q4_1(blocks: UInt8, out: Float32) -> None:
    _nibbles(blocks[:, 4:], out)
    out *= _half(blocks[:, :2])
    out += _half(blocks[:, 2:4])


def _five_bits(high: UInt8, packed: UInt8, out: Float32) -> None:
    _nibbles(packed, out)
    out += np.unpackbits(high, axis=1, bitorder="little") << 4


def _q5_0(blocks: UInt8, out: Float32) -> None:
    _five_bits(blocks[:, 2:6], blocks[:, 6:], out)
    out -= 16
    out *= _half(blocks[:, :2])


def _q5_1(blocks: UInt8, out: Float32) -> None:
    _five_bits(blocks[:, 4:8], blocks[:, 8:], out)
    out *= _half(blocks[:, :2])
    out += _half(blocks[:, 2:4])


def _q8_0(blocks: UInt8, out: Float32) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _half(blocks[:, :2]), out=out)


def _k_scales(blocks: UInt8) -> tuple[Float32, Float32]:
    """Scales and mins [N, 8, 1] of a Q4_K or Q5_K super-block: two halves and eight 6-bit pairs in 12 bytes."""
    packed = blocks[:, 4:16].reshape(-1, 3, 4)
    first, second, third = packed[:, 0], packed[:, 1], packed[:, 2]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    mins = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    return (_half(blocks[:, :2]) * scales)[:, :, None], (_half(blocks[:, 2:4]) * mins)[:, :, None]


def _k_nibbles(packed: UInt8, out: Float32) -> None:
    """128 bytes -> [N, 4, 2, 32]: of every 32 bytes first the low nibbles, then the high ones."""
    packed = packed.reshape(-1, 4, 32)
    out[:, :, 0] = packed & 15
    out[:, :, 1] = packed >> 4


def _two_bits(packed: UInt8, out: Float32) -> None:
    """64 bytes -> [N, 2, 4, 32]: of every 32 bytes first their lowest two bits."""
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    out[:] = packed.reshape(-1, 2, 1, 32) >> shifts & 3


def _q2_k(blocks: UInt8, out: Float32) -> None:
    scales, mins = blocks[:, :16] & 15, blocks[:, :16] >> 4
    _two_bits(blocks[:, 16:80], out.reshape(-1, 2, 4, 32))
    groups = out.reshape(-1, 16, 16)
    groups *= (_half(blocks[:, 80:82]) * scales)[:, :, None]
    groups -= (_half(blocks[:, 82:]) * mins)[:, :, None]


def _q3_k(blocks: UInt8, out: Float32) -> None:
    _two_bits(blocks[:, 32:96], out.reshape(-1, 2, 4, 32))
    bit = np.arange(8, dtype=np.uint8)[:, None]
    groups = out.reshape(-1, 8, 32)
    groups += (blocks[:, None, :32] >> bit & 1) << 2
    out -= 4
    packed = blocks[:, 96:108].reshape(-1, 3, 4)  # 16 scales: low nibbles of eight, of the other eight; upper bits
    low = np.concatenate([packed[:, :2] & 15, packed[:, :2] >> 4], axis=1)
    high = packed[:, 2:] >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    scales = (low | high << 4).reshape(-1, 16).astype(np.float32) - 32
    groups = out.reshape(-1, 16, 16)
    groups *= (_half(blocks[:, 108:]) * scales)[:, :, None]


def _q4_k(blocks: UInt8, out: Float32) -> None:
    scales, mins = _k_scales(blocks)
    _k_nibbles(blocks[:, 16:], out.reshape(-1, 4, 2, 32))
    groups = out.reshape(-1, 8, 32)
    groups *= scales
    groups -= mins


def _q5_k(blocks: UInt8, out: Float32) -> None:
    scales, mins = _k_scales(blocks)
    groups = out.reshape(-1, 8, 32)
    _k_nibbles(blocks[:, 48:], out.reshape(-1, 4, 2, 32))
    bit = np.arange(8, dtype=np.uint8)[:, None]
    groups += (blocks[:, None, 16:48] >> bit & 1) << 4
    groups *= scales
    groups -= mins


def _q6_k(blocks: UInt8, out: Float32) -> None:
    low = blocks[:, :128].reshape(-1, 2, 2, 32)  # half, byte row, lane
    high = blocks[:, 128:192].reshape(-1, 2, 32)
    quads = out.reshape(-1, 2, 4, 32)
    for quad in range(4):  # elements 32 * quad + lane of each half
        four = low[:, :, quad % 2] >> (4 * (quad // 2)) & 15
        quads[:, :, quad] = four | (high >> (2 * quad) & 3) << 4
    out -= 32
    groups = out.reshape(-1, 16, 16)
    groups *= (_half(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8))[:, :, None]


def _iq4_nl(blocks: UInt8, out: Float32) -> None:
    packed = blocks[:, 2:]
    out[:, :16] = IQ4_VALUES[packed & 15]
    out[:, 16:] = IQ4_VALUES[packed >> 4]
    out *= _half(blocks[:, :2])


def _iq4_xs(blocks: UInt8, out: Float32) -> None:
    packed = blocks[:, 8:].reshape(-1, 8, 16)
    groups = out.reshape(-1, 8, 32)
    groups[:, :, :16] = IQ4_VALUES[packed & 15]
    groups[:, :, 16:] = IQ4_VALUES[packed >> 4]
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    groups *= (_half(blocks[:, :2]) * ((low | high << 4).astype(np.float32) - 32))[:, :, None]


def _mxfp4(blocks: UInt8, out: Float32) -> None:
    exponent = blocks[:, :1].astype(np.uint32)
    scale_bits = np.where(exponent < 2, np.uint32(0x00200000) << exponent, exponent - 1 << 23)  # 2**(e - 128)
    packed = blocks[:, 1:]
    out[:, :16] = MXFP4_VALUES[packed & 15]
    out[:, 16:] = MXFP4_VALUES[packed >> 4]
    out *= scale_bits.astype(np.uint32).view(np.float32)


_EXPAND: dict[str, Callable[[UInt8, Float32], None]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ2_XXS": grid_dequant.iq2_xxs,
    "IQ2_XS": grid_dequant.iq2_xs,
    "IQ2_S": grid_dequant.iq2_s,
    "IQ3_XXS": grid_dequant.iq3_xxs,
    "IQ3_S": grid_dequant.iq3_s,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}


def _are_finite_halves(columns: UInt8) -> bool:
    """Whether the float16 in some columns of blocks are finite."""
    return bool(np.isfinite(np.ascontiguousarray(columns).view("<f2")).all())


_ARE_FINITE: dict[Codes, Callable[[UInt8], bool]] = {
    Codes.FLOAT32: lambda blocks: bool(np.isfinite(blocks.view("<f4")).all()),
    Codes.FLOAT16: _are_finite_halves,
    Codes.BFLOAT16: lambda blocks: not bool((~blocks.view("<u2") & 0x7F80 == 0).any()),
}
"""Of numbers without scales."""
