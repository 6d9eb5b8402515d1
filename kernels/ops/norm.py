"""Normalisation of rows; the ops that fuse it with a product are in `kernels.ops.matmul`."""

from __future__ import annotations

import struct

from kernels.runtime.compiler import Variant
from kernels.runtime.device_array import DeviceArray, pointer_of
from kernels.runtime.launcher import Context
from kernels.weights.parameters import LayerNorm, Norm

_PARAMS = struct.Struct("<3Q 2Q f i f 4x i 4x")
NORM_PARTS = 8  # of a row's sums, as in norm.cuh
SHORT_WIDTH = NORM_PARTS * 128  # a warp holds such a row: PART_STEP of norm.cuh
_SHORT_WARPS = 8  # of a block of norm_short_rows
_MANY_ROWS = 1024  # short ones, from which on a warp each takes less time than a block each


def variants() -> list[Variant]:
    """What of norm.cu is compiled."""
    return [("norm/norm", {})]


def norm_fields(norm: Norm | None, width: int) -> tuple[int, int, float, int, float]:
    """The fields of the struct NormParams of norm.cuh."""
    if norm is None:
        return 0, 0, 0.0, width, 0.0
    bias = norm.bias.pointer if isinstance(norm, LayerNorm) else 0
    return norm.weight.pointer, bias, norm.epsilon, width, 1 / width


def norm_rows(context: Context, x: DeviceArray, norm: Norm, *, rows: DeviceArray | None, out: DeviceArray) -> None:
    """Norm of ``x`` [T, H] float32, or of its ``rows`` [R] only -> ``out`` [R, H] float16."""
    num_rows, width = out.shape
    params = _PARAMS.pack(x.pointer, pointer_of(rows), out.pointer, *norm_fields(norm, width), num_rows)
    if width <= SHORT_WIDTH and num_rows >= _MANY_ROWS:
        context.launch("norm/norm", "norm_short_rows", -(-num_rows // _SHORT_WARPS), 32 * _SHORT_WARPS, params)
    else:
        context.launch("norm/norm", "norm_rows", num_rows, 32 * NORM_PARTS, params)
