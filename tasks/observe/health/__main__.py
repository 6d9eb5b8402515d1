"""``python -P -m tasks.observe.health --listen FD --source FD``: the child of a `HealthServer`, on its sockets."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from tasks.observe.health.health_pages import HealthPages
from tasks.observe.health.health_snapshot import decode
from worker.contract import FrameSplitter

IDLE_TIMEOUT_S = 10
"""A client that sends nothing for so long is disconnected."""


class _Server(ThreadingHTTPServer):
    """One thread a client, so that one which sends nothing keeps no other waiting."""

    def __init__(self, listener: socket.socket, pages: HealthPages) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.pages = pages

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client went away; the standard library would print a traceback."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_TIMEOUT_S
    disable_nagle_algorithm = True
    wbufsize = -1  # buffered: an answer is one packet
    server: _Server

    def do_GET(self) -> None:
        """Answer a probe."""
        page = self.server.pages.page(self.path.partition("?")[0])
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.end_headers()
        self.wfile.write(page.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests of probes are no log events."""


def _listen_to_worker(source: socket.socket, pages: HealthPages) -> None:
    """Take what the worker tells until it has ended, and end with it."""
    frames = FrameSplitter()
    try:
        while chunk := source.recv(1 << 16):
            for body in frames.feed(chunk):
                pages.tell(decode(body))
    except (OSError, ValueError, msgspec.MsgspecError):
        os._exit(1)
    os._exit(0)


def main(arguments: Sequence[str]) -> None:
    """Answer until the worker at the other end of ``source`` has gone."""
    parser = argparse.ArgumentParser(description="A worker starts this process by itself.")
    parser.add_argument("--listen", type=int, required=True, metavar="FD")
    parser.add_argument("--source", type=int, required=True, metavar="FD")
    given = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal, or a container, sends them to the worker as well
        signal.signal(number, signal.SIG_IGN)
    pages = HealthPages()
    source = socket.socket(fileno=given.source)
    threading.Thread(target=_listen_to_worker, args=(source, pages), daemon=True).start()
    _Server(socket.socket(fileno=given.listen), pages).serve_forever(poll_interval=60)


if __name__ == "__main__":
    main(sys.argv[1:])
