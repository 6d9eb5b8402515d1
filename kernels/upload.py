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
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.array import Array
from kernels.launch import Context
from kernels.memory import pinned

NUM_BUFFERS = NUM_THREADS = 8
BUFFER_BYTES = 4 * 1024 * 1024
STAGING_BYTES = NUM_BUFFERS * BUFFER_BYTES

Consume = Callable[[Array, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Bytes to upload, and what is done with them there.

    ``source`` is uint8, one-dimensional and contiguous, whole granules; ``consume(staging, start, count)`` enqueues on
    the context's stream what reads the granules ``start:start + count`` from ``staging``, uint8 [count * granule].
    """

    source: NDArray[np.uint8]
    granule: int  # bytes that must arrive together, such as a row or a tile of rows
    consume: Consume


def cut(pieces: Sequence[Piece], buffer_bytes: int) -> Iterator[tuple[Piece, int, int]]:
    """(piece, first granule, number of granules) in order, each as large as a buffer holds."""
    for piece in pieces:
        num_granules, rest = divmod(piece.source.size, piece.granule)
        assert not rest, f"{piece.source.size} bytes are no whole granules of {piece.granule}"
        assert piece.granule <= buffer_bytes, f"a granule of {piece.granule} bytes is larger than a buffer"
        step = buffer_bytes // piece.granule
        for start in range(0, num_granules, step):
            yield piece, start, min(step, num_granules - start)


class Upload:
    """Uploads through ``num_buffers`` pinned buffers and as much of the context's scratch memory, given back when it is
    closed."""

    def __init__(
        self,
        context: Context,
        *,
        num_buffers: int = NUM_BUFFERS,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        import cupy

        self._context = context
        self._num_buffers = num_buffers
        self._buffer_bytes = buffer_bytes
        self._mark = context.mark()
        self._staging = [context.scratch((buffer_bytes,), np.uint8) for _ in range(num_buffers)]
        self._buffers: dict[int, NDArray[np.uint8]] = {}  # of the slots filled so far: pinning is slow
        self._copy_stream = cupy.cuda.Stream(non_blocking=True)
        self._copied = [cupy.cuda.Event(block=True, disable_timing=True) for _ in range(num_buffers)]
        self._consumed = [cupy.cuda.Event(disable_timing=True) for _ in range(num_buffers)]
        device = cupy.cuda.Device()
        for event in self._consumed:
            event.record(context.stream)  # what is enqueued may still use the scratch memory
        self._threads = ThreadPoolExecutor(NUM_THREADS, "upload", initializer=device.use)

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, pieces: Sequence[Piece], progress: Callable[[int, int], None]) -> None:
        """Upload all ``pieces`` in order, and wait for them.

        ``progress(num_bytes, total_bytes)`` is called by the calling thread whenever a buffer is on its way, and for
        the last one when all have arrived; what it raises ends the upload.
        """
        total_bytes = sum(piece.source.size for piece in pieces)
        done_bytes = 0
        filling: deque[tuple[Piece, int, int, int, Future[None]]] = deque()

        def send_oldest() -> None:
            nonlocal done_bytes
            piece, slot, start, count, filled = filling.popleft()
            filled.result()
            self._send(piece, slot, start, count)
            done_bytes += count * piece.granule
            if done_bytes == total_bytes:
                self._context.stream.synchronize()
            progress(done_bytes, total_bytes)

        for number, (piece, start, count) in enumerate(cut(pieces, self._buffer_bytes)):
            slot = number % self._num_buffers
            if len(filling) == self._num_buffers:
                send_oldest()
            filling.append((piece, slot, start, count, self._threads.submit(self._fill, piece, slot, start, count)))
        while filling:
            send_oldest()

    def _fill(self, piece: Piece, slot: int, start: int, count: int) -> None:
        """In a thread: bring the granules into the slot's buffer, once its last contents have left it."""
        self._copied[slot].synchronize()
        if slot not in self._buffers:
            self._buffers[slot] = pinned((self._buffer_bytes,), np.uint8)
        first, end = start * piece.granule, (start + count) * piece.granule
        np.copyto(self._buffers[slot][: end - first], piece.source[first:end])

    def _send(self, piece: Piece, slot: int, start: int, count: int) -> None:
        """Enqueue the copy to the device, and after it what consumes it there."""
        from cupy.cuda import runtime

        stream, staging, num_bytes = self._context.stream, self._staging[slot], count * piece.granule
        self._copy_stream.wait_event(self._consumed[slot])
        source = self._buffers[slot].ctypes.data
        runtime.memcpyAsync(staging.pointer, source, num_bytes, runtime.memcpyHostToDevice, self._copy_stream.ptr)
        self._copied[slot].record(self._copy_stream)
        stream.wait_event(self._copied[slot])
        piece.consume(staging.first(num_bytes), start, count)
        self._consumed[slot].record(stream)

    def close(self) -> None:
        """Wait for everything that is enqueued, then give the buffers and the scratch memory back."""
        self._threads.shutdown(cancel_futures=True)
        self._copy_stream.synchronize()
        self._context.stream.synchronize()
        self._context.release(self._mark)
        self._buffers.clear()
