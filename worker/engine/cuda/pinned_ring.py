"""Page-locked host memory between the host and the device: nobody waits for the other while both are at work."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.devices.protocol import GpuDevice, GpuEvent
from kernels.runtime.device_array import DeviceArray

NUM_BUFFERS = 4
"""As many as steps may be in flight: each has one, be it that it is still to be copied or to be read."""


class PinnedRing:
    """Page-locked buffers of bytes that are used in turn, each with the event behind its last copy."""

    def __init__(self, device: GpuDevice, num_bytes: int) -> None:
        self._device = device
        self._buffers: list[NDArray[np.uint8]] = [device.pinned((num_bytes,), np.uint8) for _ in range(NUM_BUFFERS)]
        self._copied = [device.event() for _ in range(NUM_BUFFERS)]
        self._turn = 0

    def _finish_turn(self) -> None:
        """Record the event behind the copy that was just enqueued, and go on to the next buffer."""
        self._copied[self._turn].record()
        self._turn = (self._turn + 1) % NUM_BUFFERS


class UploadRing(PinnedRing):
    """Buffers from which steps are copied to the device."""

    def __init__(self, device: GpuDevice, num_bytes: int, timeout_s: float) -> None:
        super().__init__(device, num_bytes)
        self._copies = [device.uploader(buffer) for buffer in self._buffers]
        self._in_use = [False] * NUM_BUFFERS
        self._timeout_s = timeout_s

    def take(self) -> NDArray[np.uint8]:
        """The next buffer, to be written and sent; waits in the unlikely case that its last copy is not done yet.

        Raises `kernels.errors.CudaFailure` if something before that copy failed or takes too long.
        """
        if self._in_use[self._turn]:
            self._copied[self._turn].synchronise(self._timeout_s)
        return self._buffers[self._turn]

    def send(self, target: DeviceArray) -> None:
        """Enqueue the copy of what was written; ``target`` has as many bytes."""
        self._copies[self._turn](target)
        self._in_use[self._turn] = True
        self._finish_turn()


class DownloadRing(PinnedRing):
    """Buffers into which what steps drew is copied from the device, or written by the kernel that drew it."""

    def fetch(self, source: DeviceArray) -> Download:
        """Enqueue a copy of bytes. It must be read before as many others are fetched as there are buffers."""
        self._device.copy_to_host_async(self._buffers[self._turn][: source.shape[0]], source)
        return self.expect(source.shape[0])

    @property
    def buffers(self) -> list[NDArray[np.uint8]]:
        """All of them, for kernels that write there themselves."""
        return self._buffers

    @property
    def turn(self) -> int:
        """Which of the buffers is next."""
        return self._turn

    def expect(self, num_bytes: int) -> Download:
        """The bytes with which what was enqueued begins the next buffer."""
        buffer, event = self._buffers[self._turn][:num_bytes], self._copied[self._turn]
        self._finish_turn()
        return Download(buffer, event)


class Download:
    """A copy that is on its way to the host."""

    __slots__ = ("_buffer", "_event")

    def __init__(self, buffer: NDArray[np.uint8], event: GpuEvent) -> None:
        self._buffer = buffer
        self._event = event

    def read(self, timeout_s: float) -> NDArray[np.uint8]:
        """The bytes; raises `kernels.errors.CudaFailure` if something before them failed or takes too long."""
        self._event.synchronise(timeout_s)
        return self._buffer
