"""Random weights made directly as blocks: as fast as random bytes, finite, of zero mean and a chosen deviation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.weights.formats import Format

UInt8 = NDArray[np.uint8]

# Deviation of the stored integers times their inner scales, where the block's float16 scale is 1.
_UNIFORM_DEVIATION = {
    "Q4_0": 4.61, "Q5_0": 9.23, "Q8_0": 73.9,
    "Q2_K": 9.84, "Q3_K": 43.3, "Q4_K": 168.0, "Q5_K": 337.0, "Q6_K": 1366.0,
    "IQ2_XXS": 53.4, "IQ2_XS": 55.9, "IQ2_S": 56.4, "IQ3_XXS": 142.4, "IQ3_S": 140.2, "IQ4_NL": 67.4, "IQ4_XS": 1245.0,
}  # fmt: skip
_MEAN_QUANT = {"Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}

MADE_DIRECTLY = ("F32", "MXFP4", *_UNIFORM_DEVIATION)
"""The formats that `random_blocks` makes. Others are quantised by the gguf library."""
UNQUANTISABLE = tuple(name for name in _UNIFORM_DEVIATION if name.endswith("_K") or name.startswith("IQ"))
"""Those that the gguf library cannot quantise, but only read."""


def random_blocks(format_: Format, shape: tuple[int, ...], deviation: float, rng: np.random.Generator) -> UInt8:
    """Blocks [..., row_bytes] of a tensor of ``shape`` whose numbers deviate by about ``deviation`` from 0."""
    row_bytes = format_.row_bytes(shape[-1])
    if format_.name == "F32":
        values = rng.standard_normal(shape, np.float32) * np.float32(deviation)
        return values.view(np.uint8)
    num_blocks = int(np.prod(shape)) // format_.block_elements
    blocks = np.frombuffer(bytearray(rng.bytes(num_blocks * format_.block_bytes)), np.uint8)
    blocks = blocks.reshape(num_blocks, format_.block_bytes)
    if format_.name == "MXFP4":
        blocks[:, format_.scales_at] = 128 + round(np.log2(deviation / 6.1))
    else:
        scale = deviation / _UNIFORM_DEVIATION[format_.name]
        signs = rng.choice([-1, 1], num_blocks)  # Q4_0 and Q5_0 hold one negative number more than positive ones
        scales = (scale * signs * rng.uniform(0.8, 1.2, num_blocks)).astype(np.float16)
        at = format_.super_at if format_.scaling.super_bytes else format_.scales_at
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
        if format_.name in _MEAN_QUANT:
            _centre(format_, blocks, scales * np.float16(_MEAN_QUANT[format_.name]))
    return blocks.reshape(*shape[:-1], row_bytes)


def _centre(format_: Format, blocks: UInt8, minimum_scales: NDArray[np.float16]) -> None:
    """Make the minimum of each group of a K-quant equal to its scale, so that the group's mean is 0."""
    at = format_.super_at + 2
    blocks[:, at : at + 2] = minimum_scales.view(np.uint8).reshape(-1, 2)
    if format_.name == "Q2_K":  # 4 bits each
        blocks[:, :16] = (blocks[:, :16] & 15) * 17
        return
    blocks[:, 8:12] = blocks[:, 4:8]
    blocks[:, 12:16] = (blocks[:, 12:16] & 15) * 17
