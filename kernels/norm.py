"""Normalisation of rows; the ops that fuse it with a product are in `kernels.matmul`."""

from __future__ import annotations

import struct

from kernels.array import Array, pointer_of
from kernels.launch import Context
from kernels.layers import LayerNorm, Norm
from kernels.loader import Variant

_PARAMS = struct.Struct("<3Q 2Q f i f 4x i 4x")
NORM_PARTS = 8  # of a row's sums, as in norm.cuh
SHORT_WIDTH = NORM_PARTS * 128  # a warp holds such a row: PART_STEP of norm.cuh
_SHORT_WARPS = 8  # of a block of norm_short_rows
_MANY_ROWS = 1024  # short ones, from which on a warp each takes less time than a block each


def variants() -> list[Variant]:
    return [("norm", {})]


def norm_fields(norm: Norm | None, width: int) -> tuple[int, int, float, int, float]:
    """The fields of the struct NormParams of norm.cuh."""
    if norm is None:
        return 0, 0, 0.0, width, 0.0
    bias = norm.bias.pointer if isinstance(norm, LayerNorm) else 0
    return norm.weight.pointer, bias, norm.epsilon, width, 1 / width


def norm_rows(context: Context, x: Array, norm: Norm, *, rows: Array | None, out: Array) -> None:
    """Norm of ``x`` [T, H] float32, or of its ``rows`` [R] only -> ``out`` [R, H] float16."""
    num_rows, width = out.shape
    params = _PARAMS.pack(x.pointer, pointer_of(rows), out.pointer, *norm_fields(norm, width), num_rows)
    if width <= SHORT_WIDTH and num_rows >= _MANY_ROWS:
        context.launch("norm", "norm_short_rows", -(-num_rows // _SHORT_WARPS), 32 * _SHORT_WARPS, params)
    else:
        context.launch("norm", "norm_rows", num_rows, 32 * NORM_PARTS, params)
