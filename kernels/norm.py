"""Normalisation of rows; the ops that fuse it with a product are in `kernels.matmul`."""

from __future__ import annotations

import struct

from kernels.array import Array
from kernels.launch import Context
from kernels.layers import LayerNorm, Norm
from kernels.loader import Variant

_PARAMS = struct.Struct("<3Q 2Q f i")
NORM_PARTS = 8  # of a row's sums, as in norm.cuh


def variants() -> list[Variant]:
    return [("norm", {})]


def norm_fields(norm: Norm | None, width: int) -> tuple[int, int, float, int]:
    """The fields of the struct NormParams of norm.cuh."""
    if norm is None:
        return 0, 0, 0.0, width
    bias = norm.bias.pointer if isinstance(norm, LayerNorm) else 0
    return norm.weight.pointer, bias, norm.epsilon, width


def norm_rows(context: Context, x: Array, norm: Norm, *, rows: Array | None, out: Array) -> None:
    """Norm of ``x`` [T, H] float32, or of its ``rows`` [R] only -> ``out`` [R, H] float16."""
    num_rows, width = out.shape
    params = _PARAMS.pack(x.pointer, rows.pointer if rows is not None else 0, out.pointer, *norm_fields(norm, width))
    context.launch("norm", "norm_rows", num_rows, 256, params)
