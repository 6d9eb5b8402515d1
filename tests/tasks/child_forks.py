"""Forks in the place of processes that a worker starts with exec: its engine, and the one that renders templates.

`fork_children` makes a process start them so; it must have one thread still. It leaves a child that stays as it is then
and forks for it. Such a fork is reparented to the worker, which is a subreaper: to it, and to the kernel, a fork is the
child that exec would have made. Linux only.
"""

from __future__ import annotations

import ctypes
import fcntl
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
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from select import select
from types import SimpleNamespace

from tasks.dispatch.engine import engine_run
from worker.text.process import text_process

ENGINE_FORK = "fork of worker"
"""The name that the kernel shows of such an engine; its command line is that of the fork server."""

PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36
FIRST_FREE_FD = 500
"""No process that is started here is handed a file descriptor as high."""


def fork_children() -> None:
    """From now on, start the engine and the process for templates as forks of what this process is now."""
    ours, theirs = socket.socketpair()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    if os.fork():
        theirs.close()
        forker = _Forker(ours)
        for module in (engine_run, text_process):
            vars(module)["subprocess"] = SimpleNamespace(Popen=forker.start, DEVNULL=subprocess.DEVNULL)
    else:
        ours.close()
        _serve(theirs)
        sys.exit()


def run_module(options: list[str], environment: dict[str, str], folder: str) -> None:
    """What ``python OPTIONS``, with ``-m`` among them, does at its start, and then the module."""
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
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class _ForkedChild:
    """A child of this process; the part of `subprocess.Popen` that the worker uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = os.pidfd_open(pid)
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select([self._ended], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("a fork", timeout or 0)
        with self._lock:
            if self.returncode is None:
                self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def __del__(self) -> None:
        os.close(self._ended)


class _Forker:
    """The child that forks, as its parent sees it."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lock = threading.Lock()

    def start(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        pass_fds: Sequence[int],
        stderr: int | None = None,
        start_new_session: bool = False,
        **_: int,
    ) -> _ForkedChild:
        """As `subprocess.Popen`; standard input and output are those of the fork server, which are empty."""
        run = {"options": command[1:], "environment": dict(env), "folder": str(Path.cwd())}
        fork = {"fds": pass_fds, "is_quiet": stderr == subprocess.DEVNULL, "has_session": start_new_session}
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as reply, tempfile.TemporaryFile() as request:
            request.write(json.dumps([run, fork]).encode())
            request.seek(0)
            with self._lock, os.fdopen(writer, "wb") as pipe:
                socket.send_fds(self._control, [b"+"], [request.fileno(), pipe.fileno(), *pass_fds])
            return _ForkedChild(int(reply.readline()))


def _serve(control: socket.socket) -> None:
    """Fork until the other end is closed; in a fork, run its module."""
    while received := socket.recv_fds(control, 1, 8)[1]:
        between = os.fork()
        if between:
            os.waitpid(between, 0)
            for fd in received:
                os.close(fd)
            continue
        between = os.getpid()
        if os.fork():
            os._exit(0)
        control.close()
        while os.getppid() == between:  # a child of the worker from then on
            time.sleep(0.0005)
        _run_fork(*received)
        return


def _run_fork(request: int, reply: int, *received: int) -> None:
    os.write(reply, b"%d\n" % os.getpid())
    os.close(reply)
    with os.fdopen(request, "rb") as file:
        run, fork = json.load(file)
    _prctl(PR_SET_NAME, f"fork of {run['options'][2]}".encode())
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, FIRST_FREE_FD) for fd in received]
    for fd in received:
        os.close(fd)
    for fd, target in zip(moved, fork["fds"], strict=True):
        os.dup2(fd, target)
        os.close(fd)
    if fork["has_session"]:
        os.setsid()
    if fork["is_quiet"]:
        os.dup2(0, 2)
    run_module(**run)


def _prctl(option: int, value: int | bytes) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
