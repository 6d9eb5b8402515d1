"""Activations on their own, where they cannot be fused with a product (`kernels.ops.matmul`)."""

from __future__ import annotations

import numpy as np

from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_struct import CudaStruct, Float32, Int32, Int64, Pointer
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context
from kernels.weights.parameters import Clamp


class SwigluParams(CudaStruct, source="activation/activation"):
    """What swiglu_rows is given."""

    both: Pointer  # [num_rows, 2 width] float16: gates, then ups
    out: Pointer  # [num_rows, width] float16
    num_rows: Int32
    width: Int32
    alpha: Float32
    limit: Float32


class GegluParams(CudaStruct, source="activation/activation"):
    """What geglu_rows is given."""

    rows: SwigluParams
    scale: Float32


class GegluColumnsParams(CudaStruct, source="activation/activation"):
    """What geglu_columns is given."""

    gates: Pointer  # [num_rows, width] float32
    inputs: Pointer  # [num_rows, stride] float32
    out: Pointer  # [num_rows, width] float16
    width: Int32
    stride: Int32
    column: Int32
    gate_scale: Float32
    scale: Float32


class GateParams(CudaStruct, source="activation/activation"):
    """What gate is given."""

    x: Pointer  # [num_rows, width] float16
    gates: Pointer  # [num_rows, width] float16
    out: Pointer  # [num_rows, width] float16, may be x
    num_pairs: Int64  # of neighbours, all rows together


class NarrowParams(CudaStruct, source="activation/activation"):
    """What narrow is given."""

    x: Pointer  # [num_rows, width] float32
    out: Pointer  # [num_rows, width] float16
    width: Int32
    scale: Float32


def variants() -> list[Variant]:
    """What of activation.cu is compiled."""
    return [("activation/activation", {})]


def swiglu_rows(context: Context, both: DeviceArray, clamp: Clamp | None = None, *, out: DeviceArray) -> None:
    """silu(gate) * up, or with a ``clamp`` the clamped SwiGLU.

    ``both`` [T, 2 F] float16, gates first -> ``out`` [T, F] float16.
    """
    num_rows, width = out.shape
    params = _params(both, out, clamp)
    context.launch("activation/activation", "swiglu_rows", (num_rows, -(-width // 256)), 256, params)


def geglu_rows(context: Context, both: DeviceArray, scale: float, *, out: DeviceArray) -> None:
    """gelu(gate) * up * scale: ``both`` [T, 2 F] float16, gates first -> ``out`` [T, F] float16."""
    num_rows, width = out.shape
    params = GegluParams(rows=_params(both, out), scale=scale)
    context.launch("activation/activation", "geglu_rows", (num_rows, -(-width // 256)), 256, params)


def geglu_columns(
    context: Context,
    gates: DeviceArray,
    inputs: DeviceArray,
    column: int,
    gate_scale: float,
    scale: float,
    *,
    out: DeviceArray,
) -> None:
    """gelu(``gates`` * gate_scale) * ``inputs`` from ``column`` on * scale.

    ``gates`` [T, P] and ``inputs`` [T, ...] float32 -> ``out`` [T, P] float16.
    """
    num_rows, width = out.shape
    assert gates.shape == out.shape and gates.dtype == inputs.dtype == np.float32
    if not num_rows:
        return
    params = GegluColumnsParams(
        gates=gates.pointer,
        inputs=inputs.pointer,
        out=out.pointer,
        width=width,
        stride=inputs.shape[1],
        column=column,
        gate_scale=gate_scale,
        scale=scale,
    )
    context.launch("activation/activation", "geglu_columns", (num_rows, -(-width // 256)), 256, params)


def gate(context: Context, x: DeviceArray, gates: DeviceArray, *, out: DeviceArray) -> None:
    """``x`` times sigmoid(``gates``), all [T, W] float16, W even; ``out`` may be ``x``."""
    assert x.shape == gates.shape == out.shape and x.shape[1] % 2 == 0
    num_pairs = x.size // 2
    params = GateParams(x=x.pointer, gates=gates.pointer, out=out.pointer, num_pairs=num_pairs)
    context.launch("activation/activation", "gate", -(-num_pairs // 256), 256, params)


def narrow(context: Context, x: DeviceArray, scale: float, *, out: DeviceArray) -> None:
    """``x`` [T, H] float32 times ``scale`` as float16: what that cannot hold becomes its largest number."""
    num_rows, width = out.shape
    assert x.shape == out.shape and x.dtype == np.float32
    if not num_rows:
        return
    params = NarrowParams(x=x.pointer, out=out.pointer, width=width, scale=scale)
    context.launch("activation/activation", "narrow", (num_rows, -(-width // 256)), 256, params)


def _params(both: DeviceArray, out: DeviceArray, clamp: Clamp | None = None) -> SwigluParams:
    num_rows, width = out.shape
    assert both.shape == (num_rows, 2 * width)
    return SwigluParams(
        both=both.pointer,
        out=out.pointer,
        num_rows=num_rows,
        width=width,
        alpha=clamp.alpha if clamp else 1.0,
        limit=clamp.limit if clamp else 0.0,
    )
