"""The gateway as a process."""

from __future__ import annotations

import logging
import resource
import socket
import time
from contextlib import suppress

import uvicorn

from orcd.errors import InvalidRequest
from orcd.gateway.app import create_app
from orcd.gateway.settings import GatewaySettings

STOP_S = 30
"""How long answers that are on their way may take after the gateway was told to stop. Streams go on at another."""
BACKLOG = 2048
CALLER_GONE = "socket.send() raised exception."
"""What asyncio says of each write, from the sixth on, to a connection of which a write has failed."""
NO_FILES_LEFT = "socket.accept() out of system resource"
"""What asyncio says, with a traceback and up to `BACKLOG` times a second, where no connection can be opened."""
NO_FILES_LEFT_S = 10.0
"""So often it is told here."""


def serve(settings: GatewaySettings) -> None:
    """Answer until SIGTERM or SIGINT. Raises `InvalidRequest` if the address or the folder of files cannot be had."""
    # What is wrong with a form is told to its sender; it is no event of the gateway's.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.getLogger("asyncio").addFilter(AsyncioFilter())
    take_files()
    config = uvicorn.Config(
        create_app(settings),
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=STOP_S,
    )
    listening = listen(settings)
    host = f"[{settings.host}]" if listening.family == socket.AF_INET6 else settings.host
    print(f"orcd gateway: http://{host}:{listening.getsockname()[1]}/v1", flush=True)
    uvicorn.Server(config).run(sockets=[listening])


def take_files() -> None:
    """Take as many files as this process may have: a stream needs two, and by default few may be open."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems have a lower one of their own
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class AsyncioFilter(logging.Filter):
    """Leaves out what asyncio logs of connections that is no event of the gateway's, or one that was told."""

    def __init__(self) -> None:
        super().__init__()
        self._quiet_until = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log it."""
        if record.msg == CALLER_GONE:  # its next events are written before the loop hears of it
            return False
        if not str(record.msg).startswith(NO_FILES_LEFT):
            return True
        is_news = time.monotonic() >= self._quiet_until
        if is_news:
            self._quiet_until = time.monotonic() + NO_FILES_LEFT_S
        record.msg = "no file is left for another connection: callers wait; raise the limit of open files (ulimit -n)"
        record.exc_info = None
        return is_news


def listen(settings: GatewaySettings) -> socket.socket:
    """The socket that callers connect to. Raises `InvalidRequest` if the address cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listening = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InvalidRequest(
            f"host, port: cannot listen on {settings.host} port {settings.port} ({error.strerror}); choose another"
        ) from None
    # Connections inherit it. asyncio does not set it for them, and each event would wait until the caller's machine has
    # acknowledged the one before, which may take 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
