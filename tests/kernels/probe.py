"""Launches of probe.cu."""

from __future__ import annotations

from kernels.runtime.cuda_struct import CudaStruct, Float32, Int32, Int64, Pointer, UInt64
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context


class AddParams(CudaStruct, source="probe"):
    values: Pointer  # [size] float32
    size: Int32
    amount: Float32


class RotateParams(CudaStruct, source="probe"):
    out: Pointer  # [threads] int32
    shared_words: Int32
    pad: Int32


class SpinParams(CudaStruct, source="probe"):
    nanoseconds: UInt64


class CopyParams(CudaStruct, source="probe"):
    source: Pointer  # [size, 16] uint8
    target: Pointer  # [size, 16] uint8
    size: Int64


def add(context: Context, values: DeviceArray, amount: float) -> None:
    """values = 2 * values + amount: the order of two such steps can be seen."""
    params = AddParams(values=values.pointer, size=values.size, amount=amount)
    context.launch("probe", "probe_add", -(-values.size // 256), 256, params, SHIFT=1)


def spin(context: Context, seconds: float) -> None:
    context.launch("probe", "probe_spin", 1, 1, SpinParams(nanoseconds=int(seconds * 1e9)), SHIFT=1)
