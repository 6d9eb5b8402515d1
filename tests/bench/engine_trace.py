"""What an engine process does when: each step, and each request that it drops because it was told to."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

_SITECUSTOMIZE = """
import sys

if "--fd" in sys.orig_argv:  # the engine process, not the Celery process
    import time

    from worker.engine.engine import Engine

    trace = open({path!r}, "a", buffering=1)
    abort, step = Engine.abort, Engine.advance

    def traced_abort(engine, request):
        was_there = request.request_id in engine._requests
        abort(engine, request)
        if was_there and request.request_id not in engine._requests:
            trace.write(f"drop {{request.request_id}} {{time.monotonic()}}\\n")

    def traced_step(engine):
        start = time.monotonic()
        step(engine)
        trace.write(f"step {{start}} {{time.monotonic()}}\\n")

    Engine.abort, Engine.advance = traced_abort, traced_step
"""


@dataclass(slots=True)
class Trace:
    """Times of the monotonic clock, which all processes of a machine share.

    ``dropped`` is when a job's sequences had left the engine, because they were aborted; ``steps`` are begin and end.
    """

    dropped: dict[str, float] = field(default_factory=dict)
    steps: list[tuple[float, float]] = field(default_factory=list)

    def longest_step_s(self, since: float) -> float:
        """Of the steps that began at ``since`` or later."""
        return max((end - begin for begin, end in self.steps if begin >= since), default=0.0)


class EngineTrace:
    """Has the engines of workers write a trace into ``folder``; the workers are started with `variables`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "trace"
        self._folder.mkdir()
        self._path = self._folder / "engine.txt"
        (self._folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(path=str(self._path)))

    @property
    def variables(self) -> dict[str, str]:
        """For a worker's environment, which its engine inherits."""
        return {"PYTHONPATH": os.pathsep.join([str(self._folder), os.environ.get("PYTHONPATH", "")])}

    def read(self) -> Trace:
        """What was written so far."""
        trace = Trace()
        for line in self._path.read_text().splitlines():
            kind, *values = line.split()
            if kind == "drop":
                trace.dropped[values[0].rpartition("#")[0]] = float(values[1])
            else:
                trace.steps.append((float(values[0]), float(values[1])))
        return trace
