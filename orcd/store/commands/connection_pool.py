"""Connections of redis-py that let go of Python's interpreter seldom.

Whoever waits for a socket lets other threads run, and then waits for its next turn of the interpreter, which in a busy
process takes longer than Redis. redis-py lets go of it five times for a command: to see whether Redis has closed the
connection, and, as the socket has a timeout, to wait until it can be written and then read, before it is. Here it is
twice.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from functools import cache
from typing import Any

import redis
from redis.retry import Retry

FRESH_S = 1.0
"""Redis has hardly closed a connection since then."""
MAX_IDLE = 64
"""Idle connections kept at most: after many calls at once the others are closed."""


@cache
def timed_by_the_kernel(kind: type[Any]) -> type[Any]:
    """A kind of redis-py's connections without TLS, with ``socket_timeout`` an option of the socket."""

    class Connection(kind):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._answer_timeout_s: float | None = options.get("socket_timeout")
            self.socket_timeout: float | None = None

        def _connect(self) -> socket.socket:
            connected: socket.socket = super()._connect()
            if self._answer_timeout_s is None:
                return connected
            # The kernel does not wait for gevent's sockets. Windows has such limits in another form.
            if sys.platform == "win32" or not os.get_blocking(connected.fileno()):
                self.socket_timeout = self._answer_timeout_s
                connected.settimeout(self.socket_timeout)
            else:
                seconds, fraction = divmod(self._answer_timeout_s, 1)
                limit = struct.pack("ll", int(seconds), int(1e6 * fraction))  # a timeval
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            return connected

        def send_packed_command(self, *args: Any, **options: Any) -> None:
            try:
                super().send_packed_command(*args, **options)
            except redis.ConnectionError as error:
                if _is_late(error):
                    raise redis.TimeoutError("Timeout writing to socket") from None
                raise

        def read_response(self, *args: Any, **options: Any) -> Any:
            try:
                return super().read_response(*args, **options)
            except redis.ConnectionError as error:
                if _is_late(error):
                    raise redis.TimeoutError("Timeout reading from socket") from None
                raise

    return Connection


def _is_late(error: redis.ConnectionError) -> bool:
    """Whether the time is over: the kernel says only that nothing can be done now."""
    return isinstance(error.__context__, BlockingIOError)


class ConnectionPool(redis.ConnectionPool):
    """Lends the connection that was given back last, and closes the idle ones that are too many.

    redis-py first looks whether Redis has closed the connection, or has an answer on it that nobody has read. That is
    left out of one that was given back a moment ago, and without an error, where commands are tried again.
    """

    def __init__(self, *, retry: Retry, **options: Any) -> None:
        super().__init__(retry=retry, **options)
        self._tries_again = retry.get_retries() > 0  # less than none is as often as somebody waits, who may not

    def get_connection(self, *args: Any, **options: Any) -> Any:
        """A connection that nobody else has."""
        return self._take_fresh() or super().get_connection(*args, **options)

    def _take_fresh(self) -> Any:
        self._checkpid()
        with self._lock:
            last: Any = self._available_connections[-1] if self._available_connections else None
            if last is None or not last.is_connected or time.monotonic() >= getattr(last, "fresh_until", 0.0):
                return None
            self._in_use_connections.add(self._available_connections.pop())
            return last

    def release(self, connection: Any) -> None:
        """Take a connection back."""
        is_fresh = self._tries_again and sys.exc_info()[0] is None
        connection.fresh_until = time.monotonic() + FRESH_S if is_fresh else 0.0
        super().release(connection)
        close_spare(self)


def close_spare(pool: redis.ConnectionPool) -> None:
    """Close the idle connection that was not used for longest, if there are too many."""
    with pool._lock:
        spare = pool._available_connections.pop(0) if len(pool._available_connections) > MAX_IDLE else None
    if spare is not None:  # the last that came is lent first
        spare.disconnect()
