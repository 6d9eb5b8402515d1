"""Launches of probe.cu."""

from __future__ import annotations

import struct

from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context

ADD = struct.Struct("<Qif")
ROTATE = struct.Struct("<Qii")
SPIN = struct.Struct("<Q")


def add(context: Context, values: DeviceArray, amount: float) -> None:
    """values = 2 * values + amount: the order of two such steps can be seen."""
    params = ADD.pack(values.pointer, values.size, amount)
    context.launch("probe", "probe_add", -(-values.size // 256), 256, params, SHIFT=1)


def spin(context: Context, seconds: float) -> None:
    context.launch("probe", "probe_spin", 1, 1, SPIN.pack(int(seconds * 1e9)), SHIFT=1)
