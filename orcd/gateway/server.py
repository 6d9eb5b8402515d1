"""The gateway as a process."""

from __future__ import annotations

import logging
import signal
import socket
from pathlib import Path
from tempfile import TemporaryFile
from typing import NoReturn

import uvicorn

from orcd.errors import InvalidRequest
from orcd.gateway.app import create_app
from orcd.gateway.settings import GatewaySettings

STOP_S = 30
"""How long answers that are on their way may take after the gateway was told to stop. Streams go on at another."""
BACKLOG = 2048


def serve(settings: GatewaySettings) -> None:
    """Answer until SIGTERM or SIGINT. Raises `InvalidRequest` if the address or the folder of files cannot be had."""
    if settings.files_dir:
        _open_folder(Path(settings.files_dir))
    # What is wrong with a form is told to its sender; it is no event of the gateway's.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    config = uvicorn.Config(
        create_app(settings),
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=STOP_S,
    )
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listening = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InvalidRequest(
            f"host, port: cannot listen on {settings.host} port {settings.port} ({error.strerror}); choose another"
        ) from None
    for number in (signal.SIGTERM, signal.SIGINT):  # until uvicorn listens; once it has stopped it raises them again
        signal.signal(number, _leave)
    host = f"[{settings.host}]" if family == socket.AF_INET6 else settings.host
    print(f"orcd gateway: http://{host}:{listening.getsockname()[1]}/v1", flush=True)
    uvicorn.Server(config).run(sockets=[listening])


def _leave(*_: object) -> NoReturn:
    raise SystemExit(0)


def _open_folder(folder: Path) -> None:
    """Make the folder of files if it is not there, and write to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InvalidRequest(
            f"files_dir: no file can be kept in {folder} ({error.strerror}); name a folder that may be written to"
        ) from None
