"""The engine process as the Celery side sees it: spawned with exec, spoken to over a socketpair, gone when we are."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import msgspec

from orcd.settings import to_environment
from worker import contract
from worker.contract import Event, Request
from worker.settings import Settings

READ_BYTES = 1 << 18
STOP_AFTER_S = 5.0
CANNOT_START = 127
"""The exit code of an engine whose program could not even be started, as a shell has it."""


class EngineProcess:
    """``python -m worker``, started again by `restart` each time it has ended.

    One thread starts every run and reads its frames: the kernel kills the child when the thread that started it ends
    (PR_SET_PDEATHSIG), so that thread lives as long as this object. It calls ``on_event`` for every frame and
    ``on_exit`` with the exit code after the last one.
    """

    def __init__(self, settings: Settings, on_event: Callable[[Event], None], on_exit: Callable[[int], None]) -> None:
        self._settings = settings
        self._on_event = on_event
        self._on_exit = on_exit
        self._wanted = threading.Event()
        self._stopping = False
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.last_heard = time.monotonic()

    @property
    def pid(self) -> int | None:
        """Process id of the current run, None between runs."""
        process = self._process
        return process.pid if process else None

    def start(self) -> None:
        """Start the first run."""
        self._wanted.set()
        self._thread.start()

    def restart(self) -> None:
        """Start the next run; call it once after each `on_exit`."""
        self._wanted.set()

    def send(self, request: Request) -> None:
        """Send one frame. A dead engine takes it silently: its ``on_exit`` is on the way.

        An engine that reads nothing for ``engine_step_timeout_s`` is killed: it hangs.
        """
        with self._lock:
            if self._socket is None:
                return
            try:
                self._socket.sendall(contract.encode(request))
            except OSError:
                self.kill()

    def kill(self) -> None:
        """End the current run at once; ``on_exit`` follows."""
        process = self._process
        if process is not None:
            process.kill()

    def stop(self) -> None:
        """Ask the engine to leave, insist after a few seconds, and wait until it is gone for good."""
        self._stopping = True
        self._wanted.set()
        self.send(contract.Shutdown())
        self._thread.join(STOP_AFTER_S)
        self.kill()
        self._thread.join()

    def _run(self) -> None:
        while self._wanted.wait() and not self._stopping:
            self._wanted.clear()
            try:
                code = self._run_once()
            except OSError:  # no program, no memory, no file descriptors
                code = CANNOT_START
            self._on_exit(code)

    def _run_once(self) -> int:
        ours, theirs = socket.socketpair()
        inherited = {name: text for name, text in os.environ.items() if not name.startswith("ORCD_")}
        send_timeout = struct.pack("ll", self._settings.engine_step_timeout_s, 0)  # a timeval: seconds, microseconds
        with ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, send_timeout)
            with theirs:
                process = subprocess.Popen(
                    # -P: a worker.py in the folder that we were started in must not pass for ours.
                    [sys.executable, "-P", "-m", "worker", "--fd", str(theirs.fileno())],
                    env=inherited | to_environment(self._settings),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
            self.last_heard = time.monotonic()
            self._process, self._socket = process, ours
            self._read(ours, process)
            code = process.wait()
            with self._lock:
                self._process = self._socket = None
        return code

    def _read(self, connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
        splitter = contract.FrameSplitter()
        try:
            while chunk := connection.recv(READ_BYTES):
                self.last_heard = time.monotonic()
                for body in splitter.feed(chunk):
                    self._on_event(contract.decode_event(body))
        except (OSError, ValueError, msgspec.MsgspecError):
            process.kill()  # a connection that broke or spoke nonsense cannot be mended
