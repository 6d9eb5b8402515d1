"""How long no thread of a worker's Celery process could run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

WAKE_S = 0.005
"""So often a thread wakes; while it sleeps longer than that, something keeps all of its process from running."""

_SITECUSTOMIZE = """
import os, sys

if "tasks" in sys.orig_argv:  # the Celery process
    import threading, time

    trace = open({path!r}, "a", buffering=1)

    def watch():
        before, busy_before = time.monotonic(), time.process_time()
        while True:
            time.sleep({wake_s})
            now, busy = time.monotonic(), time.process_time()
            if now - before > 2 * {wake_s}:
                trace.write(f"{{before}} {{now}} {{busy - busy_before}}\\n")
            before, busy_before = now, busy

    threading.Thread(target=watch, daemon=True).start()
elif "--fd" in sys.orig_argv:  # the engine process
    os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
"""


@dataclass(frozen=True, slots=True)
class Stall:
    """From one wake to the next one, which came late; seconds of the monotonic clock.

    For ``busy_s`` of them the process had a processor: no thread can have held the interpreter for longer. Else the
    machine ran other processes.
    """

    begin: float
    end: float
    busy_s: float


class StallTrace:
    """Has the Celery process of a worker write its stalls into ``folder``, and keeps the engine on one core.

    The worker is started with `variables`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "stalls"
        self._folder.mkdir()
        self._path = self._folder / "stalls.txt"
        (self._folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(path=str(self._path), wake_s=WAKE_S))

    @property
    def variables(self) -> dict[str, str]:
        """For the worker's environment."""
        return {"PYTHONPATH": os.pathsep.join([str(self._folder), os.environ.get("PYTHONPATH", "")])}

    def read(self) -> list[Stall]:
        """Those so far."""
        return [Stall(*map(float, line.split())) for line in self._path.read_text().splitlines()]
