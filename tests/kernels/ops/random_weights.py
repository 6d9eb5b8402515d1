"""Random weights in every format for tests of kernels, with their values in float64, and weights of zeros."""

from __future__ import annotations

import gguf
import numpy as np
from numpy.typing import NDArray

from kernels.weights.formats import FORMATS
from kernels.weights.parameters import Weight
from tests.bench.random_blocks import MADE_DIRECTLY, random_blocks


def random_weight(name: str, shape: tuple[int, ...], rng: np.random.Generator, *, bias: bool = False) -> Weight:
    """A weight of ``shape`` in format ``name`` whose products keep the size of what goes in."""
    deviation = shape[-1] ** -0.5
    if name not in MADE_DIRECTLY:
        values = rng.normal(0, deviation, shape).astype(np.float32)
        data = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name]).view(np.uint8)
        data = data.reshape(*shape[:-1], FORMATS[name].row_bytes(shape[-1]))
    else:
        data = random_blocks(FORMATS[name], shape, deviation, rng)
        if name == "MXFP4":  # blocks of a row differ in their exponents
            data.reshape(-1, 17)[:, 0] -= rng.integers(0, 6, data.size // 17).astype(np.uint8)
    return Weight(
        f"{name}.weight", FORMATS[name], data, rng.normal(size=shape[:-1]).astype(np.float32) if bias else None
    )


def zero_weight(name: str, num_outputs: int, num_inputs: int, *, bias: bool = False) -> Weight:
    """A weight of which only format and shape matter."""
    data = np.zeros((num_outputs, FORMATS[name].row_bytes(num_inputs)), np.uint8)
    return Weight(name, FORMATS[name], data, np.zeros(num_outputs, np.float32) if bias else None)


def values_of(weight: Weight) -> NDArray[np.float64]:
    """The numbers of a weight by an implementation that is not ours."""
    kind = gguf.GGMLQuantizationType[weight.format.name]
    shape = (*weight.data.shape[:-1], weight.num_inputs)
    if weight.format.name == "F32":
        return weight.data.view(np.float32).reshape(shape).astype(np.float64)
    if weight.format.name == "F16":
        return weight.data.view(np.float16).reshape(shape).astype(np.float64)
    rows = np.ascontiguousarray(weight.data).reshape(-1, weight.data.shape[-1])
    return gguf.quants.dequantize(rows, kind).reshape(shape).astype(np.float64)
