"""Page-locked host memory between the host and the device: nobody waits for the other while both are at work."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.step import DeviceArray, first

NUM_SLOTS = 3  # as many as steps may be in flight: each has one, be it that it is still to be copied or to be read


class UploadRing:
    """Buffers from which steps are copied to the device, used in turn."""

    def __init__(self, device: Any, num_bytes: int, timeout_s: float) -> None:
        self._device = device
        self._buffers: list[NDArray[np.uint8]] = [device.pinned((num_bytes,), np.uint8) for _ in range(NUM_SLOTS)]
        self._copied = [device.event() for _ in range(NUM_SLOTS)]
        self._in_use = [False] * NUM_SLOTS
        self._timeout_s = timeout_s
        self._turn = 0

    def take(self) -> NDArray[np.uint8]:
        """The next buffer, to be written and sent; waits in the unlikely case that its last copy is not done yet."""
        if self._in_use[self._turn]:
            self._copied[self._turn].synchronise(self._timeout_s)
        return self._buffers[self._turn]

    def send(self, num_bytes: int, target: DeviceArray) -> None:
        """Enqueue the copy of what was written."""
        self._device.copy_to_device_async(first(target, num_bytes), self._buffers[self._turn][:num_bytes])
        self._copied[self._turn].record()
        self._in_use[self._turn] = True
        self._turn = (self._turn + 1) % NUM_SLOTS


class DownloadRing:
    """Buffers into which what steps drew is copied from the device, used in turn."""

    def __init__(self, device: Any, num_bytes: int) -> None:
        self._device = device
        self._buffers: list[NDArray[np.uint8]] = [device.pinned((num_bytes,), np.uint8) for _ in range(NUM_SLOTS)]
        self._events = [device.event() for _ in range(NUM_SLOTS)]
        self._turn = 0

    def fetch(self, source: DeviceArray) -> Download:
        """Enqueue a copy of bytes. It must be read before as many others are fetched as there are buffers."""
        num_bytes = source.shape[0]
        buffer = self._buffers[self._turn][:num_bytes]
        event = self._events[self._turn]
        self._turn = (self._turn + 1) % NUM_SLOTS
        self._device.copy_to_host_async(buffer, source)
        event.record()
        return Download(buffer, event)


class Download:
    """A copy that is on its way to the host."""

    __slots__ = ("_buffer", "_event")

    def __init__(self, buffer: NDArray[np.uint8], event: Any) -> None:
        self._buffer = buffer
        self._event = event

    def read(self, timeout_s: float) -> NDArray[np.uint8]:
        """The bytes; raises `kernels.errors.CudaFailure` if something before them failed or takes too long."""
        self._event.synchronise(timeout_s)
        return self._buffer
