"""The memory of processes over time."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Mapping
from types import TracebackType

import psutil

SHARE = 0.1
"""Medians are taken over this part of the samples."""


class MemoryWatch:
    """Notes the resident memory of some processes every ``every_s`` seconds; use it in a with block."""

    def __init__(self, pids: Mapping[str, int], every_s: float) -> None:
        self.samples: dict[str, list[int]] = {name: [] for name in pids}
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._every_s = every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory watch", daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def rows(self) -> list[list[str]]:
        """For each process: first, at half of the time, at the end, the most, and the growth in the last half; MB."""
        rows = []
        for name, samples in self.samples.items():
            half, end = self._median(name, 0.5), self._median(name, 1.0)
            figures = (samples[0], half, end, max(samples), end - half)
            rows.append([name, *(f"{figure / 1e6:.1f}" for figure in figures)])
        return rows

    def growth_bytes(self) -> dict[str, float]:
        """How much more each process has at the end than at half of the time."""
        return {name: self._median(name, 1.0) - self._median(name, 0.5) for name in self.samples}

    def _median(self, name: str, at: float) -> float:
        """Of the samples just before that part of the time."""
        samples = self.samples[name]
        end = max(1, round(at * len(samples)))
        return float(statistics.median(samples[max(0, end - max(1, round(SHARE * len(samples)))) : end]))

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            for name, process in self._processes.items():
                self.samples[name].append(process.memory_info().rss)
