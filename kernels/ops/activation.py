"""Activations on their own, where they cannot be fused with a product (`kernels.ops.matmul`)."""

from __future__ import annotations

import struct

from kernels.runtime.compiler import Variant
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context

_PARAMS = struct.Struct("<2Q 2i")


def variants() -> list[Variant]:
    """What of activation.cu is compiled."""
    return [("activation/activation", {})]


def swiglu_rows(context: Context, both: DeviceArray, *, out: DeviceArray) -> None:
    """silu(gate) * up: ``both`` [T, 2 F] float16, gates first -> ``out`` [T, F] float16."""
    num_rows, width = out.shape
    assert both.shape == (num_rows, 2 * width)
    params = _PARAMS.pack(both.pointer, out.pointer, num_rows, width)
    context.launch("activation/activation", "swiglu_rows", (-(-width // 256), num_rows), 256, params)
