"""A pytest plugin: ``-n 6`` runs the files of tests in six processes, forks of the one that has collected them.

With ``--dist load`` a file is run in parts, wherever there is nothing to do: for long files, on a machine with a GPU.

Collecting all of the tests takes seconds of processor time and hundreds of megabytes, so one process does it for all.
A process that has nothing to do gets the next file; what a file's tests share is made once. Fixtures of the session are
made once in each process. Reports go to the first process, which writes them as if it had run the tests itself.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest
from _pytest._io import TerminalWriter

PART = 4
"""Tests of a file that are run one after the other."""
INTERRUPTED_S = 60.0
"""So long a process that is interrupted may take to put things away."""
END = None
"""In the place of a file's number: there are no more."""


def pytest_addoption(parser: pytest.Parser) -> None:
    # pytest keeps short options in lower case for itself; this one is known to everybody.
    group = parser.getgroup("processes")
    group._addoption("-n", dest="num_processes", type=int, default=0, help="run files of tests in so many processes")
    group.addoption("--dist", choices=["loadfile", "load"], default="loadfile", help="whole files, or parts of them")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    num_processes = session.config.getoption("num_processes")
    if num_processes < 1 or session.testsfailed or session.config.option.collectonly:
        return None
    _Run(session).go(num_processes)
    return True


@dataclass
class _Process:
    """A fork. ``left`` are the tests of its file that it has not ended; it runs the first of them."""

    number: int
    pid: int
    pipe: Connection
    left: deque[pytest.Item]
    is_told_to_end: bool = False

    def give(self, items: Sequence[pytest.Item]) -> None:
        """Have it run a file, or end."""
        self.left.extend(items)
        self.is_told_to_end = not items


class _Run:
    """What the first process does: it hands files out and hears what became of their tests."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._hook = session.config.hook
        files: dict[str, list[pytest.Item]] = {}
        for item in session.items:
            files.setdefault(str(item.path), []).append(item)
        self._files = list(files.values())
        if session.config.getoption("dist") == "load":
            self._files = [items[n : n + PART] for items in self._files for n in range(0, len(items), PART)]
        self._waiting = deque(range(len(self._files)))
        self._processes: dict[Any, _Process] = {}
        self._num_begun = 0
        self._folder = session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]

    def go(self, num_processes: int) -> None:
        try:
            for _ in range(min(num_processes, len(self._files))):
                self._begin()
            while self._processes:
                for pipe in wait(list(self._processes)):
                    self._hear(self._processes[pipe])
                if self._session.shouldfail:
                    raise self._session.Failed(self._session.shouldfail)
                if self._session.shouldstop:
                    raise self._session.Interrupted(self._session.shouldstop)
        finally:
            for process in self._processes.values():
                os.kill(process.pid, signal.SIGINT)
            for process in self._processes.values():
                _wait_or_kill(process.pid)

    def _begin(self) -> None:
        """Start a process with the next file."""
        ours, theirs = Pipe()
        number, file = self._num_begun, self._waiting.popleft()
        self._num_begun += 1
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            ours.close()
            for pipe in self._processes:
                pipe.close()
            _Fork(self._session, theirs, self._folder / f"process{number}").run(self._files, file)
        theirs.close()
        self._processes[ours] = _Process(number, pid, ours, deque(self._files[file]))

    def _hear(self, process: _Process) -> None:
        try:
            kind, value = process.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._ended(process)
            return
        match kind:
            case "done":
                file = self._waiting.popleft() if self._waiting else END
                process.give([] if file is END else self._files[file])
                process.pipe.send(file)
            case "test":
                item = process.left.popleft()
                self._hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
                for each in value:
                    report = self._hook.pytest_report_from_serializable(config=self._session.config, data=each)
                    self._hook.pytest_runtest_logreport(report=report)
                self._hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
            case "error":
                self._fail(f"process {process.number}", value)

    def _ended(self, process: _Process) -> None:
        """A process has ended: in order, or what it ran has failed, and another one goes on with the rest."""
        del self._processes[process.pipe]
        process.pipe.close()
        code = os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])
        if code == 0 and process.is_told_to_end:
            return
        name = process.left.popleft().nodeid if process.left else f"process {process.number}"
        self._fail(name, f"The process that ran this ended with {code}.")
        if process.left:
            self._waiting.appendleft(len(self._files))
            self._files.append(list(process.left))
        if self._waiting:
            self._begin()

    def _fail(self, nodeid: str, text: str) -> None:
        report = pytest.TestReport(nodeid, (nodeid, None, nodeid), {}, "failed", text, "call")
        self._hook.pytest_runtest_logreport(report=report)


def _wait_or_kill(pid: int) -> None:
    """Wait for a process that was interrupted, and not for ever."""
    end = time.monotonic() + INTERRUPTED_S
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


class _Terminal:
    """In the place of pytest's terminal: what other plugins write goes to where a test's output goes."""

    def __init__(self) -> None:
        self._tw = TerminalWriter(sys.__stderr__)


class _Fork:
    """What a fork does: it runs files and tells of it."""

    def __init__(self, session: pytest.Session, pipe: Connection, folder: Any) -> None:
        self._session = session
        self._config = session.config
        self._pipe = pipe
        self._folder = folder
        self._reports: list[Any] = []

    def run(self, files: Sequence[Sequence[pytest.Item]], number: int | None) -> None:
        """Run a file, and then what the first process says, in a process that ends here."""
        code = 1
        try:
            self._become()
            while number is not END:
                self._run_file(files[number])
                self._pipe.send(("done", None))
                number = self._pipe.recv()
            self._session._setupstate.teardown_exact(None)
            code = 0
        except (KeyboardInterrupt, EOFError, BrokenPipeError):  # the first process has ended, or will
            with suppress(BaseException):
                self._session._setupstate.teardown_exact(None)
        except BaseException:
            self._pipe.send(("error", traceback.format_exc()))
        finally:
            os._exit(code)

    def _become(self) -> None:
        """Take leave of what the first process has open."""
        random.seed()
        manager: Any = self._config.pluginmanager
        capture = manager.getplugin("capturemanager")
        capture.stop_global_capturing()
        capture.start_global_capturing()
        manager.unregister(name="terminalreporter")
        manager.register(_Terminal(), "terminalreporter")
        manager.register(self)
        self._folder.mkdir(mode=0o700)
        self._config._tmp_path_factory._basetemp = self._folder  # type: ignore[attr-defined]

    def _run_file(self, items: Sequence[pytest.Item]) -> None:
        for item, following in zip(items, [*items[1:], self._session], strict=True):  # the session's fixtures stay
            self._config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self._session.shouldfail or self._session.shouldstop:
                return

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._reports.append(self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_runtest_logfinish(self) -> None:
        reports, self._reports = self._reports, []
        self._pipe.send(("test", reports))
