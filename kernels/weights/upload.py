"""Weights into device memory: mapped file -> ring of pinned buffers -> staging memory -> a kernel that repacks.

Threads copy file pages into pinned buffers, a stream of its own copies those to the device (pageable memory would
take six times as long), and the kernel that reads the staging memory runs on the compute stream; events keep the
three apart, and a buffer is filled again as soon as it is free. No step runs meanwhile, so that the staging memory is
the steps' scratch memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from kernels.runtime import cuda_runtime
from kernels.runtime.cuda_runtime import Event, Stream
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context
from kernels.runtime.memory import padded, pinned

NUM_BUFFERS = NUM_THREADS = 8
BUFFER_BYTES = 8 * 1024 * 1024
"""Each costs the host 0.15 ms, mostly waiting for the interpreter, which the threads that fill others take from it."""
STAGING_BYTES = NUM_BUFFERS * BUFFER_BYTES

Consume = Callable[[DeviceArray, int, int], None]


class Transfer(msgspec.Struct, frozen=True, eq=False):
    """Bytes to upload, and what is done with them there.

    ``source`` is uint8, one-dimensional and contiguous, whole granules; ``consume(staging, start, count)`` enqueues on
    the context's stream what reads the granules ``start:start + count`` from ``staging``, uint8 [count * granule].
    """

    source: NDArray[np.uint8]
    granule: int  # bytes that must arrive together, such as a row or a tile of rows
    consume: Consume


class TransferSlice(NamedTuple):
    """Granules of a transfer that go up together, and where in their buffer they lie."""

    transfer: Transfer
    start: int  # granule
    num_granules: int
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes of its granules."""
        return self.num_granules * self.transfer.granule


def cut(transfers: Sequence[Transfer], buffer_bytes: int) -> Iterator[list[TransferSlice]]:
    """What to put into one buffer after the other: as much as fits, so that small transfers share one."""
    slices: list[TransferSlice] = []
    used_bytes = 0
    for transfer in transfers:
        num_granules, rest = divmod(transfer.source.size, transfer.granule)
        assert not rest, f"{transfer.source.size} bytes are no whole granules of {transfer.granule}"
        assert transfer.granule <= buffer_bytes, f"a granule of {transfer.granule} bytes is larger than a buffer"
        start = 0
        while start < num_granules:
            count = min((buffer_bytes - used_bytes) // transfer.granule, num_granules - start)
            if count <= 0:
                yield slices
                slices, used_bytes = [], 0
                continue
            slices.append(TransferSlice(transfer, start, count, used_bytes))
            start += count
            used_bytes = padded(used_bytes + slices[-1].num_bytes)
    if slices:
        yield slices


class PinnedBuffers:
    """Page-locked buffers, made in the background: it takes longer than filling them."""

    def __init__(self, num_buffers: int = NUM_BUFFERS, num_bytes: int = BUFFER_BYTES) -> None:
        self.num_bytes = num_bytes
        threads = ThreadPoolExecutor(num_buffers, "pin", initializer=cuda_runtime.device_of_this_thread())
        self._made = [threads.submit(pinned, (num_bytes,), np.uint8) for _ in range(num_buffers)]
        threads.shutdown(wait=False)

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self._made[index].result()


class Upload:
    """Uploads through pinned ``buffers`` and as much of the context's scratch memory, given back when it is closed."""

    def __init__(self, context: Context, buffers: PinnedBuffers | None = None) -> None:
        self._context = context
        self._buffers = buffers or PinnedBuffers()
        num_buffers = len(self._buffers)
        self._mark = context.mark()
        self._staging = [context.scratch((self._buffers.num_bytes,), np.uint8) for _ in range(num_buffers)]
        self._copy_stream = Stream()
        self._copied = [Event(self._copy_stream, sleeps=True) for _ in range(num_buffers)]
        self._consumed = [Event(context.stream) for _ in range(num_buffers)]
        for event in self._consumed:
            event.record()  # what is enqueued may still use the scratch memory
        self._threads = ThreadPoolExecutor(NUM_THREADS, "upload", initializer=cuda_runtime.device_of_this_thread())

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, transfers: Sequence[Transfer], progress: Callable[[int, int], None]) -> None:
        """Upload all ``transfers`` in order, and wait for them.

        ``progress(num_bytes, total_bytes)`` is called by the calling thread whenever a buffer is on its way, and for
        the last one when all have arrived; what it raises ends the upload.
        """
        total_bytes = sum(transfer.source.size for transfer in transfers)
        done_bytes = 0
        filling: deque[tuple[int, list[TransferSlice], Future[None]]] = deque()

        def send_oldest() -> None:
            nonlocal done_bytes
            index, slices, filled = filling.popleft()
            filled.result()
            self._send(index, slices)
            done_bytes += sum(slice_.num_bytes for slice_ in slices)
            if done_bytes == total_bytes:
                self._context.stream.synchronise()
            progress(done_bytes, total_bytes)

        for number, slices in enumerate(cut(transfers, self._buffers.num_bytes)):
            index = number % len(self._buffers)
            if len(filling) == len(self._buffers):
                send_oldest()
            filling.append((index, slices, self._threads.submit(self._fill, index, slices)))
        while filling:
            send_oldest()

    def _fill(self, index: int, slices: list[TransferSlice]) -> None:
        """In a thread: bring the granules into the buffer, once its last contents have left it."""
        self._copied[index].wait()
        buffer = self._buffers[index]
        for transfer, start, count, offset in slices:
            num_bytes = count * transfer.granule
            first = start * transfer.granule
            np.copyto(buffer[offset : offset + num_bytes], transfer.source[first : first + num_bytes])

    def _send(self, index: int, slices: list[TransferSlice]) -> None:
        """Enqueue the copy to the device, and after it what consumes it there."""
        staging, last = self._staging[index], slices[-1]
        self._copy_stream.wait_for(self._consumed[index])
        source, num_bytes = self._buffers[index].ctypes.data, last.offset + last.num_bytes
        self._copy_stream.copy_to_device(staging.pointer, source, num_bytes)
        self._copied[index].record()
        self._context.stream.wait_for(self._copied[index])
        for slice_ in slices:
            slice_.transfer.consume(
                staging.rows(slice_.offset, slice_.offset + slice_.num_bytes), slice_.start, slice_.num_granules
            )
        self._consumed[index].record()

    def close(self) -> None:
        """Wait for everything that is enqueued, then give the scratch memory back."""
        self._threads.shutdown(cancel_futures=True)
        self._copy_stream.synchronise()
        self._context.stream.synchronise()
        self._context.release(self._mark)
