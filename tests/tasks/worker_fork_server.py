"""Starts workers as forks of a process that has imported what they run: importing is most of what a start computes.

``python -P worker_fork_server.py FD`` is that process. It has one thread and nothing but modules. A fork of it runs
``python -P -m tasks worker``, or another such command, as if it had been started so, with an environment,
``sitecustomize`` and standard error of its own. The engine that a worker starts before it has threads is a fork, too;
those that it starts when that one has ended are not.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path
from select import select
from types import SimpleNamespace
from typing import IO, Any

MODULES = (
    *("orcd.cli.command_line", "orcd.cli.terminal", "tasks.app", "tasks.observe.flower", "tasks.observe.node_name"),
    *("tasks.celery_ext.logging", "tasks.celery_ext.tasks", "tasks.celery_ext.pool", "tasks.celery_ext.consumer"),
    *("tasks.celery_ext.transport", "tasks.celery_ext.result_backend", "tasks.dispatch.engine.engine_run"),
    *("celery.app.control", "celery.app.log", "celery.app.trace", "celery.apps.worker", "celery.fixups.django"),
    *("celery.bin.celery", "celery.bin.worker"),
    *("celery.loaders.app", "celery.worker.components", "celery.worker.strategy", "encodings.idna"),
    *("kernels.devices.open", "worker.load", "worker.service"),
)
"""What a worker and its engine import until they are ready; the rest they import themselves."""


class ForkedWorker:
    """A fork that runs a worker; the part of `subprocess.Popen` that tests use. Its parent is the fork server."""

    def __init__(self, status: IO[bytes]) -> None:
        self._status = status
        self.pid = int(status.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code; of a process that a signal ended, its number below zero; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, waited for. Raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            if not select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a worker", timeout or 0)
            with self._status:
                self.returncode = int(self._status.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class WorkerForkServer:
    """The process that forks, as its users see it; it ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def start(self, options: list[str], environment: dict[str, str], folder: str, errors: IO[str]) -> ForkedWorker:
        """Start ``python OPTIONS``, with ``-m`` among them, in a folder; standard error goes to a file."""
        reader, writer = os.pipe()
        with tempfile.TemporaryFile() as request, os.fdopen(writer, "wb") as status:
            request.write(json.dumps({"options": options, "environment": environment, "folder": folder}).encode())
            request.seek(0)
            with self._lock:
                socket.send_fds(self._control, [b"+"], [request.fileno(), errors.fileno(), status.fileno()])
        return ForkedWorker(os.fdopen(reader, "rb", buffering=0))

    def close(self) -> None:
        """End the process; its workers go on."""
        self._control.close()
        self._process.wait()


@cache
def worker_fork_server() -> WorkerForkServer:
    """The fork server of this process."""
    server = WorkerForkServer()
    atexit.register(server.close)
    return server


class _Forks:
    """The running forks, and the pipes on which somebody waits for their exit codes."""

    def __init__(self) -> None:
        self._pipes: dict[int, int] = {}
        # A signal that only interrupts may come just before the call that it is to interrupt.
        self.some_ended, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def fork(self, pipe: int) -> bool:
        """Fork, and tell the process id through ``pipe``; is this the fork?"""
        pid = os.fork()
        if pid:
            self._pipes[pid] = pipe
            os.write(pipe, b"%d\n" % pid)
        else:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for each in (*self._pipes.values(), pipe, self.some_ended, self._wakeup):
                os.close(each)
        return not pid

    def reap(self) -> None:
        """Tell the exit codes of those that have ended; ``some_ended`` can be read when there are any."""
        os.read(self.some_ended, 1 << 10)
        while self._pipes:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            pipe = self._pipes.pop(pid)
            with suppress(BrokenPipeError):  # nobody waits for it
                os.write(pipe, b"%d\n" % os.waitstatus_to_exitcode(status))
            os.close(pipe)


def _serve(control: socket.socket, end: _Exit) -> None:
    """Fork until the other end is closed; in a fork, run its worker."""
    forks = _Forks()
    while True:
        ready, _, _ = select([control.fileno(), forks.some_ended], [], [])
        if forks.some_ended in ready:
            forks.reap()
        if control.fileno() not in ready:
            continue
        fds = socket.recv_fds(control, 1, 3)[1]
        if not fds:
            return
        request, errors, pipe = fds
        if forks.fork(pipe):
            control.close()
            os.dup2(errors, 2)
            os.close(errors)
            with os.fdopen(request, "rb") as file:
                _fork_engines(end)
                _run(end, **json.load(file))
            return
        os.close(request)
        os.close(errors)


class _Exit:
    """Ends a process with an exit code and without taking its objects apart.

    Most objects of a fork are the fork server's, and their memory would be copied for it: an eighth of what a worker
    computes that is started and stopped.
    """

    code = 0

    def now(self) -> None:
        """The end; everything else that is to be done before it is done."""
        sys.stderr.flush()
        os._exit(self.code)


def _fork_engines(end: _Exit) -> None:
    """Have this process, which will run a worker, fork for an engine while it has one thread."""

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        def run_engine() -> None:
            """In the fork, when Popen has done all else that is done before a program begins."""
            first = 3
            for kept in sorted(options["pass_fds"]):
                os.closerange(first, kept)
                first = kept + 1
            os.closerange(first, os.sysconf("SC_OPEN_MAX"))  # among others where Popen waits for the program to begin
            try:
                _run(end, command[1:], options["env"], str(Path.cwd()))
            except Exception:
                traceback.print_exc()
            finally:
                end.now()

        return subprocess.Popen(command, preexec_fn=run_engine if threading.active_count() == 1 else None, **options)

    engine_run = importlib.import_module("tasks.dispatch.engine.engine_run")
    engine_run.subprocess = SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL)  # type: ignore[attr-defined]


def _run(end: _Exit, options: list[str], environment: dict[str, str], folder: str) -> None:
    """What the interpreter does at its start, and then the module behind ``-m``."""
    num_before = options.index("-m")
    module, *arguments = options[num_before + 1 :]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.orig_argv[:] = [sys.executable, *options]
    sys.argv[:] = ["", *arguments]
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    if "-P" not in options[:num_before]:
        sys.path.insert(0, folder)
    sys.modules.pop("sitecustomize", None)
    with suppress(ModuleNotFoundError):
        importlib.import_module("sitecustomize")
    end.code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        end.code = 0
    except SystemExit as given:
        end.code = given.code if isinstance(given.code, int) else int(given.code is not None)
        raise


if __name__ == "__main__":
    end = _Exit()
    atexit.register(end.now)  # before what the modules register, and so called after it
    for module in MODULES:
        importlib.import_module(module)
    _serve(socket.socket(fileno=int(sys.argv[1])), end)
