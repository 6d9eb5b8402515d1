"""Normalisation of rows; the ops that fuse it with a product are in `kernels.ops.matmul`."""

from __future__ import annotations

from typing import TypeAlias

from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_constants import declare_constants
from kernels.runtime.cuda_struct import CudaStruct, Float32, Int32, Pointer
from kernels.runtime.device_array import DeviceArray, pointer_of
from kernels.runtime.launcher import Context
from kernels.weights.parameters import LayerNorm, Norm

DeviceNorm: TypeAlias = Norm[DeviceArray]
"""A norm whose arrays are in device memory."""

NORM_PARTITIONS = 8  # of a row's sums
SHORT_WIDTH = NORM_PARTITIONS * 128  # a warp holds such a row
_SHORT_WARPS = 8  # of a block of norm_short_rows
_MANY_ROWS = 1024  # short ones, from which on a warp each takes less time than a block each

declare_constants("norm/norm.cuh", NORM_PARTITIONS=NORM_PARTITIONS, PARTITION_STEP=SHORT_WIDTH)
declare_constants("norm/norm.cu", SHORT_WARPS=_SHORT_WARPS)


class NormParams(CudaStruct, source="norm/norm"):
    """A norm, as every kernel that has one is given it."""

    weight: Pointer  # [width] float32
    bias: Pointer  # [width] float32; null: RMS norm, else layer norm
    epsilon: Float32
    width: Int32
    inverse_width: Float32


class NormRowsParams(CudaStruct, source="norm/norm"):
    """What norm_rows, norm_short_rows, norm_residual and norm_stream are given."""

    x: Pointer  # [num_x_rows, width] float32
    rows: Pointer  # [num_rows] int32: which row of x; null: in order
    out: Pointer  # [num_rows, width] float16; norm_residual: float32, added to; norm_stream: float32, may be x
    norm: NormParams
    num_rows: Int32
    scale: Float32  # norm_residual: of what `out` then is


class NormBranchesParams(CudaStruct, source="norm/norm"):
    """What norm_branches is given."""

    a: Pointer  # [num_rows, width] float32
    b: Pointer  # [num_rows, width] float32
    out: Pointer  # [num_rows, width] float32 residual stream, added to
    norm_a: NormParams
    norm_b: NormParams
    norm: NormParams
    scale: Float32


def variants() -> list[Variant]:
    """What of norm.cu is compiled."""
    return [("norm/norm", {})]


NO_NORM = NormParams(weight=0, bias=0, epsilon=0.0, width=0, inverse_width=0.0)
"""For kernels that do not look at it."""


def norm_params(norm: DeviceNorm, width: int) -> NormParams:
    """``norm`` of rows of ``width``, for the struct of a kernel."""
    return NormParams(
        weight=norm.weight.pointer,
        bias=norm.bias.pointer if isinstance(norm, LayerNorm) else 0,
        epsilon=norm.epsilon,
        width=width,
        inverse_width=1 / width,
    )


def norm_rows(
    context: Context, x: DeviceArray, norm: DeviceNorm, *, rows: DeviceArray | None, out: DeviceArray
) -> None:
    """Norm of ``x`` [T, H] float32, or of its ``rows`` [R] only -> ``out`` [R, H] float16."""
    num_rows, width = out.shape
    params = NormRowsParams(
        x=x.pointer,
        rows=pointer_of(rows),
        out=out.pointer,
        norm=norm_params(norm, width),
        num_rows=num_rows,
        scale=1.0,
    )
    if width <= SHORT_WIDTH and num_rows >= _MANY_ROWS:
        context.launch("norm/norm", "norm_short_rows", -(-num_rows // _SHORT_WARPS), 32 * _SHORT_WARPS, params)
    else:
        context.launch("norm/norm", "norm_rows", num_rows, 32 * NORM_PARTITIONS, params)


def norm_residual(context: Context, x: DeviceArray, norm: DeviceNorm, *, scale: float = 1.0, out: DeviceArray) -> None:
    """Add the norm of ``x`` [T, H] float32 to the residual stream ``out`` [T, H] float32, all of it times ``scale``."""
    num_rows, width = out.shape
    if not num_rows:
        return
    params = NormRowsParams(
        x=x.pointer, rows=0, out=out.pointer, norm=norm_params(norm, width), num_rows=num_rows, scale=scale
    )
    context.launch("norm/norm", "norm_residual", num_rows, 32 * NORM_PARTITIONS, params)


def norm_stream(context: Context, x: DeviceArray, norm: DeviceNorm, *, out: DeviceArray) -> None:
    """The norm of each row of ``x`` [T, H] float32 -> ``out`` [T, H] float32, which may be ``x``."""
    num_rows, width = out.shape
    params = NormRowsParams(
        x=x.pointer, rows=0, out=out.pointer, norm=norm_params(norm, width), num_rows=num_rows, scale=1.0
    )
    context.launch("norm/norm", "norm_stream", num_rows, 32 * NORM_PARTITIONS, params)


def norm_branches(
    context: Context,
    a: DeviceArray,
    norm_a: DeviceNorm,
    b: DeviceArray,
    norm_b: DeviceNorm,
    norm: DeviceNorm,
    *,
    scale: float = 1.0,
    out: DeviceArray,
) -> None:
    """Add the norm of the sum of two normed branches ``a`` and ``b`` [T, H] float32 to ``out`` [T, H] float32.

    All norms are RMS norms. The stream ``out`` is then multiplied by ``scale``.
    """
    num_rows, width = out.shape
    if not num_rows:
        return
    params = NormBranchesParams(
        a=a.pointer,
        b=b.pointer,
        out=out.pointer,
        norm_a=norm_params(norm_a, width),
        norm_b=norm_params(norm_b, width),
        norm=norm_params(norm, width),
        scale=scale,
    )
    context.launch("norm/norm", "norm_branches", num_rows, 32 * NORM_PARTITIONS, params)
