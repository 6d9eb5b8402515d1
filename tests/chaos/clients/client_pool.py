"""All clients of a fault test: two processes of them, and what they have reported."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

from tests.chaos.clients.client_process import ClientPlan, Report, run_event_loop, run_threads
from tests.chaos.clients.seen import Seen


class ClientPool:
    """Starts the clients; use it in a with block. ``seen`` has what is over."""

    def __init__(self, plan: ClientPlan) -> None:
        context = multiprocessing.get_context("spawn")
        self.seen: list[Seen] = []
        self._open: dict[str, Seen] = {}
        self._lock = threading.Lock()
        self._reports = context.Queue()
        self._stopping = context.Event()
        self._processes = [
            context.Process(target=run, args=(plan, self._reports, self._stopping), name=name, daemon=False)
            for name, run in (("clients on threads", run_threads), ("clients on an event loop", run_event_loop))
        ]
        self._thread = threading.Thread(target=self._collect, name="collector", daemon=True)

    def __enter__(self) -> ClientPool:
        for process in self._processes:
            process.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join()
        self._reports.put(None)
        self._thread.join()

    def active(self, *kinds: str) -> list[Seen]:
        """The jobs of these kinds of client that are not over."""
        with self._lock:
            return [seen for seen in self._open.values() if seen.kind in kinds]

    def check(self) -> list[str]:
        """A line for each process that has ended otherwise than it was told to: its clients are seen no more."""
        lines = []
        for process in self._processes:
            if not self._stopping.is_set() and process.exitcode is not None:
                lines.append(f"the {process.name} ended with {process.exitcode} before they were told to")
            elif process.exitcode:
                lines.append(f"the {process.name} ended with {process.exitcode}")
        return lines

    def stop(self, max_wait_s: float, is_hopeless: Callable[[Seen], bool]) -> list[Seen]:
        """No more jobs; wait for those that run, at most so long. Returns what was seen.

        A client that does not come back is hung; one that need not be waited for has lost its job.
        """
        self._stopping.set()
        end = time.monotonic() + max_wait_s
        for process in self._processes:
            while process.is_alive() and time.monotonic() < end and self._waits_for_somebody(is_hopeless):
                process.join(0.5)
        with self._lock:
            for seen in self._open.values():
                problem = "lost" if is_hopeless(seen) else "hung"
                self.seen.append(replace(seen, ended_s=time.monotonic(), problem=problem, detail="did not come back"))
            self._open.clear()
            return list(self.seen)

    def _waits_for_somebody(self, is_hopeless: Callable[[Seen], bool]) -> bool:
        """Whether a client that has not come back still may. A process without clients ends in a moment."""
        with self._lock:
            return not self._open or not all(is_hopeless(seen) for seen in self._open.values())

    def _collect(self) -> None:
        while (report := self._reports.get()) is not None:
            self._take(report)

    def _take(self, report: Report) -> None:
        with self._lock:
            self._open[report.place] = report.seen
            if report.is_over:
                del self._open[report.place]
                self.seen.append(report.seen)
