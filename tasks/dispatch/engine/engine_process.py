"""The engine process as the Celery side sees it: spawned with exec, spoken to over a socketpair, gone when we are."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue

import msgspec

from tasks.dispatch.engine.engine_run import EngineRun, start_engine
from tasks.supervised_thread import OnDeath, SupervisedThread
from worker import contract
from worker.contract import Event, Request
from worker.settings import Settings

READ_BYTES = 1 << 18
STOP_AFTER_S = 5.0
CANNOT_START = 127
"""The exit code of an engine whose program could not even be started, as a shell has it."""

FAULTS = {
    -signal.SIGSEGV,
    -signal.SIGABRT,
    -signal.SIGBUS,
    -signal.SIGFPE,
    -signal.SIGILL,
    -signal.SIGSYS,
    -signal.SIGTRAP,
}
"""Exit codes by signals that a process brings upon itself."""


@dataclass(frozen=True, slots=True)
class EngineExit:
    """The engine process has ended.

    ``is_fault``: it failed, or hung so that we had to end it. If not, somebody else has ended it: by SIGKILL, as the
    kernel does when memory runs out, or with any other signal. ``in_flight`` are the ids of the requests that it was at
    work on, empty if it did not say.
    """

    code: int
    is_fault: bool
    in_flight: frozenset[str] = frozenset()


class EngineProcess:
    """``python -m worker``, started again by `restart` each time it has ended.

    One thread starts the runs and reads their frames: the kernel kills the child when the thread that started it ends
    (PR_SET_PDEATHSIG), so that thread lives as long as this object. It calls ``on_event`` for every frame and
    ``on_exit`` after the last one. Another thread writes what is not taken at once: whoever sends waits for nobody.
    """

    def __init__(
        self,
        settings: Settings,
        on_event: Callable[[Event], None],
        on_exit: Callable[[EngineExit], None],
        on_death: OnDeath,
    ) -> None:
        """``on_death`` is told of a thread that ends before `stop`."""
        self._settings = settings
        self._on_event = on_event
        self._on_exit = on_exit
        self._on_death = on_death
        self._wanted = threading.Event()
        self._first_run: EngineRun | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._hung: subprocess.Popen[bytes] | None = None
        self._writer: FrameWriter | None = None
        self._reader = SupervisedThread("engine reader", self._run, on_death)
        self.started_at = self.last_heard = time.monotonic()
        """When the last run began and when it last said something, by the monotonic clock."""

    @property
    def pid(self) -> int | None:
        """Process id of the current run, None between runs."""
        process = self._process
        return process.pid if process else None

    @property
    def writer(self) -> FrameWriter | None:
        """To the current run; None between runs, and once the last one is known to be gone."""
        return self._writer

    def start(self, first_run: EngineRun | None = None) -> None:
        """Begin with ``first_run``, or with one that is started now."""
        self._first_run = first_run
        self._wanted.set()
        self._reader.start()

    def restart(self) -> None:
        """Start the next run; call it once after each `on_exit`."""
        self._wanted.set()

    def send(self, request: Request) -> bool:
        """Have one frame sent; never blocks. False if the engine is known to be gone: its ``on_exit`` is on the way.

        An engine that reads nothing for ``engine_step_timeout_s`` is killed: it hangs.
        """
        writer = self._writer
        if writer is None:
            return False
        writer.put(request)
        return True

    def kill(self) -> None:
        """End the current run at once; ``on_exit`` follows."""
        process = self._process
        if process is not None:
            self._kill(process)

    def stop(self, timeout_s: float = STOP_AFTER_S) -> None:
        """Ask the engine to leave, kill it after ``timeout_s``, and wait until it is gone for good."""
        self._reader.stop()
        self._wanted.set()
        self.send(contract.Shutdown())
        self._reader.join(timeout_s)
        self.kill()
        self._reader.join(STOP_AFTER_S)

    def _run(self) -> None:
        while self._wanted.wait() and not self._reader.stopping.is_set():
            self._wanted.clear()
            try:
                ended = self._run_once()
            except OSError:  # no program, no memory, no file descriptors
                ended = EngineExit(CANNOT_START, is_fault=True)
            self._on_exit(ended)

    def _run_once(self) -> EngineExit:
        run, self._first_run = self._first_run or start_engine(self._settings), None
        process = run.process
        with run.connection, run.in_flight:
            self.started_at = self.last_heard = time.monotonic()
            writer = FrameWriter(run.connection, lambda: self._kill(process), self._on_death)
            self._process, self._writer = process, writer
            self._read(run.connection, process)
            self._writer = None
            code = self._wait(process)
            self._process = None
            writer.close()
            is_fault = self._hung is process or code > 0 or code in FAULTS
            run.in_flight.seek(0)
            return EngineExit(code, is_fault, contract.decode_in_flight(run.in_flight.read()))

    def _read(self, connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
        splitter = contract.FrameSplitter()
        try:
            while chunk := connection.recv(READ_BYTES):
                self.last_heard = time.monotonic()
                for body in splitter.feed(chunk):
                    self._on_event(contract.decode_event(body))
        except OSError:  # a connection that broke cannot be mended
            process.kill()
        except (ValueError, msgspec.MsgspecError):  # nor one that spoke nonsense
            self._kill(process)

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """The exit code of a process that has closed its connection; one that does not leave soon is killed."""
        try:
            return process.wait(STOP_AFTER_S)
        except subprocess.TimeoutExpired:
            self._kill(process)
            return process.wait()

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        """End a run that is at fault; one that has ended already did so by itself."""
        if process.poll() is None:
            self._hung = process
            process.kill()


class FrameWriter:
    """Sends frames to one run of the engine, in order. What it does not take at once waits for a thread.

    That calls ``kill`` if it takes none. Most frames do not need it: jobs that start would wait for its turn.
    """

    def __init__(self, connection: socket.socket, kill: Callable[[], None], on_death: OnDeath) -> None:
        self._connection = connection
        self._kill = kill
        self._lock = threading.Lock()
        self._unsent: SimpleQueue[bytes | None] = SimpleQueue()
        self._num_unsent = 0
        self._thread = SupervisedThread("engine writer", self._run, on_death)
        self._thread.start()

    def put(self, request: Request, announce: Callable[[], None] | None = None) -> None:
        """Send a frame, or queue what is left of it; from any thread.

        ``announce`` is called before the engine can answer, and before any later frame.
        """
        frame = contract.encode(request)
        with self._lock:
            if announce is not None:
                announce()
            if not self._num_unsent:
                with suppress(OSError):  # it is full, or the run has ended: the thread finds out
                    frame = frame[self._connection.send(frame, socket.MSG_DONTWAIT) :]
            if frame:
                self._num_unsent += 1
                self._unsent.put(frame)

    def close(self) -> None:
        """End the thread of a run that has ended: nothing that it still sends arrives anywhere."""
        self._thread.stop()
        self._unsent.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while (frame := self._unsent.get()) is not None:
                self._connection.sendall(frame)
                with self._lock:
                    self._num_unsent -= 1
        except ConnectionError:  # it has ended, or is about to
            self._thread.stop()
        except OSError:  # it has taken nothing for long: it hangs, and half a frame cannot be mended
            self._thread.stop()
            self._kill()
