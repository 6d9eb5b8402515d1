"""A GPU's context, begun before Python has imported what uses it: the driver takes a third of a second for one."""

from __future__ import annotations

import ctypes
import threading

from kernels.devices.device_name import gpu_index


def begin_context(device: str) -> None:
    """Have the driver create the context of ``cuda:N`` on a thread of its own; does nothing for another device.

    It is the one that CUDA's runtime uses, which waits for it. Nothing is reported here: whatever fails does so again
    for whoever opens the device.
    """
    index = gpu_index(device)
    if index is not None:
        threading.Thread(target=_retain_context, args=(index,), daemon=True).start()


def _retain_context(index: int) -> None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    ordinal, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(ordinal), index) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), ordinal)
