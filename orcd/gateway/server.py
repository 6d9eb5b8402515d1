"""The gateway as a process."""

from __future__ import annotations

import logging
import signal
import socket

import uvicorn

from orcd.cli.command_line import ignore_signals_at_exit, leave
from orcd.errors import InvalidRequest
from orcd.gateway.app import create_app
from orcd.gateway.settings import GatewaySettings

STOP_S = 30
"""How long answers that are on their way may take after the gateway was told to stop. Streams go on at another."""
BACKLOG = 2048
CALLER_GONE = "socket.send() raised exception."
"""What asyncio says of each write, from the sixth on, to a connection of which a write has failed."""


def serve(settings: GatewaySettings) -> None:
    """Answer until SIGTERM or SIGINT. Raises `InvalidRequest` if the address or the folder of files cannot be had."""
    # What is wrong with a form is told to its sender; it is no event of the gateway's.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    # Nor is a caller that goes away during a stream: its next events are written before the loop hears of it.
    logging.getLogger("asyncio").addFilter(lambda record: record.msg != CALLER_GONE)
    config = uvicorn.Config(
        create_app(settings),
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=STOP_S,
    )
    listening = listen(settings)
    for number in (signal.SIGTERM, signal.SIGINT):  # until uvicorn listens; once it has stopped it raises them again
        signal.signal(number, leave)
    ignore_signals_at_exit()
    host = f"[{settings.host}]" if listening.family == socket.AF_INET6 else settings.host
    print(f"orcd gateway: http://{host}:{listening.getsockname()[1]}/v1", flush=True)
    uvicorn.Server(config).run(sockets=[listening])


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
