"""How long no thread of a worker's Celery process could run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WAKE_S = 0.005
"""So often a thread wakes; while it sleeps longer than that, something keeps all of its process from running."""

_WATCH = f"""
def watch(path):
    import time

    trace = open(path, "a", buffering=1)
    before = time.monotonic()
    while True:
        time.sleep({WAKE_S})
        now = time.monotonic()
        if now - before > 2 * {WAKE_S}:
            trace.write(f"{{before}} {{now}}\\n")
        before = now
"""

_SITECUSTOMIZE = """
import os, sys

if "celery" in sys.orig_argv:
    import threading

    threading.Thread(target=watch, args=({path!r},), daemon=True).start()
elif "--fd" in sys.orig_argv:  # the engine process
    os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
"""


@dataclass(frozen=True, slots=True)
class Stall:
    """From one wake to the next one, which came late; seconds of the monotonic clock."""

    begin: float
    end: float

    @classmethod
    def read_all(cls, path: Path) -> list[Stall]:
        """Those in a file."""
        return [cls(*map(float, line.split())) for line in path.read_text().splitlines()] if path.exists() else []


class StallTrace:
    """Has the Celery process of a worker write its stalls into ``folder``, and keeps the engine on one core.

    The worker is started with `variables`, within `beside_an_idle_process`. That process has no work at all: where it
    stalls, too, the machine ran others; where it does not, the Celery process held its own interpreter.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "stalls"
        self._folder.mkdir()
        self._path, self._idle_path = self._folder / "celery.txt", self._folder / "idle.txt"
        code = _WATCH + _SITECUSTOMIZE.format(path=str(self._path))
        (self._folder / "sitecustomize.py").write_text(code)

    @property
    def variables(self) -> dict[str, str]:
        """For the worker's environment."""
        return {"PYTHONPATH": os.pathsep.join([str(self._folder), os.environ.get("PYTHONPATH", "")])}

    @contextmanager
    def beside_an_idle_process(self) -> Iterator[None]:
        """Have one that does nothing but to watch, too."""
        idle = subprocess.Popen([sys.executable, "-c", f"{_WATCH}\nwatch({str(self._idle_path)!r})"])
        try:
            yield
        finally:
            idle.kill()
            idle.wait()

    def stalls(self) -> list[Stall]:
        """The Celery process's so far."""
        return Stall.read_all(self._path)

    def idle_stalls(self) -> list[Stall]:
        """The idle process's."""
        return Stall.read_all(self._idle_path)
