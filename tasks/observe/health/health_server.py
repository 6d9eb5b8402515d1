"""HTTP for those who watch over a worker: its metrics, whether it lives, whether it takes jobs, how busy it is."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import suppress

from orcd.errors import InvalidRequest
from orcd.settings import inherited_environment
from tasks.observe.health.health_snapshot import encode
from tasks.observe.observer import Observer
from tasks.supervised_thread import OnDeath, SupervisedThread
from worker.settings import Settings

TELL_EVERY_S = 0.1
METRICS_EVERY_S = 1.0
RESTART_S = 1.0
SEND_TIMEOUT_S = 5.0


class HealthServer:
    """``/metrics``, ``/health/live``, ``/health/ready`` and ``/health/load`` on the address in the settings.

    A child process answers, from what it was told last: the interpreter of a worker under load is busy for longer than
    a probe waits. A thread here tells it how the worker is, ten times a second, and the figures of the metrics once a
    second; it starts another child where one has ended. ``on_death`` is called if that thread dies. Raises
    `InvalidRequest` if the address cannot be had.
    """

    def __init__(self, observer: Observer, settings: Settings, on_death: OnDeath) -> None:
        self._observer = observer
        host, port = settings.metrics_host, settings.metrics_port
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            self._listener = socket.create_server(address[:2], family=family, backlog=128)
        except OSError as error:
            raise InvalidRequest(
                f"metrics_port: cannot listen on port {port} of {host} ({error.strerror}); set ORCD_METRICS_HOST to an "
                "address of this machine and ORCD_METRICS_PORT to a free port"
            ) from None
        self.port: int = self._listener.getsockname()[1]
        self._metrics_due = 0.0
        self._child: _Child | None = _Child(self._listener)
        self._thread = SupervisedThread("health server", self._run, on_death)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._thread.stop()
        self._thread.join(SEND_TIMEOUT_S)
        self._listener.close()
        if self._child is not None:
            self._child.end()

    def _run(self) -> None:
        stopping = self._thread.stopping
        while not stopping.is_set():
            try:
                self._tell()
            except OSError as error:  # somebody has killed the child
                self._observer.log.retrying("health", error)
                if self._child is not None:
                    self._child.end()
                    self._child = None
                stopping.wait(RESTART_S)
                with suppress(OSError):
                    self._child = _Child(self._listener)
                    self._metrics_due = 0.0
            stopping.wait(TELL_EVERY_S)

    def _tell(self) -> None:
        if self._child is None:
            raise ConnectionResetError
        snapshot = self._observer.health(with_metrics=time.monotonic() >= self._metrics_due)
        if snapshot.metrics is not None:
            self._metrics_due = time.monotonic() + METRICS_EVERY_S
        self._child.connection.sendall(encode(snapshot))


class _Child:
    """One run of ``python -m tasks.observe.health``."""

    def __init__(self, listener: socket.socket) -> None:
        self.connection, theirs = socket.socketpair()
        self.connection.settimeout(SEND_TIMEOUT_S)
        descriptors = [listener.fileno(), theirs.fileno()]
        arguments = ["--listen", str(descriptors[0]), "--source", str(descriptors[1])]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "tasks.observe.health", *arguments],
                    env=inherited_environment(),
                    pass_fds=descriptors,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
        except BaseException:
            self.connection.close()
            raise

    def end(self) -> None:
        """End it, unless it has ended by itself."""
        self.connection.close()
        self._process.kill()
        self._process.wait()
