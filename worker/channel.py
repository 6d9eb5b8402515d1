"""The engine's end of the pipe to the Celery process."""

from __future__ import annotations

import selectors
import socket
import time
from contextlib import suppress

import msgspec

from orcd.errors import OrcdError
from worker.contract import Event, FrameSplitter, Request, decode_request, encode

MAX_UNSENT_BYTES = 4 * 1024 * 1024
RECEIVE_BYTES = 1024 * 1024


class Channel:
    """Sends and receives frames without blocking.

    What the other side does not read waits in a buffer; whoever sends stops when `is_congested` says so. When the
    other side is gone, `is_closed` becomes true and everything sent is dropped.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)
        self._splitter = FrameSplitter()
        self._unsent = bytearray()
        self.is_closed = False

    @property
    def is_congested(self) -> bool:
        """Whether so much is unsent that nothing more should be made."""
        return len(self._unsent) > MAX_UNSENT_BYTES

    def send(self, event: Event) -> None:
        """Send a frame, or as much of it as fits now; the rest goes out in `receive` and `flush`."""
        self._unsent += encode(event)
        self._send_some()

    def receive(self, timeout_s: float) -> list[Request]:
        """Wait at most ``timeout_s`` until something can be read or sent; do it; return the requests that came.

        Raises `OrcdError` when the other side does not speak the protocol.
        """
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._selector.modify(self._connection, wanted)
        for _, ready in self._selector.select(max(timeout_s, 0)):
            if ready & selectors.EVENT_WRITE:
                self._send_some()
            if ready & selectors.EVENT_READ:
                return self._read_some()
        return []

    def flush(self, timeout_s: float) -> None:
        """Try for at most ``timeout_s`` to send what is unsent, before the process ends."""
        self._selector.modify(self._connection, selectors.EVENT_WRITE)
        deadline = time.monotonic() + timeout_s
        while self._unsent and (left := deadline - time.monotonic()) > 0:
            if self._selector.select(left):
                self._send_some()

    def stop_reading(self) -> None:
        """Close the reading half: `receive`, be it waiting or not yet called, finds the channel closed."""
        with suppress(OSError):  # the other side may be gone already
            self._connection.shutdown(socket.SHUT_RD)

    def _send_some(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._connection.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self.is_closed = True
            self._unsent.clear()

    def _read_some(self) -> list[Request]:
        try:
            chunk = self._connection.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            chunk = b""
        if not chunk:
            self.is_closed = True
        try:
            return [decode_request(body) for body in self._splitter.feed(chunk)]
        except (msgspec.MsgspecError, ValueError) as error:
            raise OrcdError(f"protocol error from the Celery process: {error}") from None
