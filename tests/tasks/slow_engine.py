"""An engine that waits before each step: jobs of few tokens run for as long as a fault takes, on any machine."""

from __future__ import annotations

import os
from pathlib import Path

STEP_S = 0.02
"""Long beside a step of the model that ships, on a machine with little else to do."""

SLOW_STEPS = """
import sys, time

if "--in-flight-fd" in sys.orig_argv:  # in the engine process
    from worker.engine.engine import Engine

    step = Engine.advance

    def step_later(engine):
        time.sleep({step_s})
        return step(engine)

    Engine.advance = step_later
"""
"""Lines for a ``sitecustomize.py`` that has more to do; ``step_s`` is to be filled in."""


def slow_engine(folder: Path, step_s: float = STEP_S) -> dict[str, str]:
    """The variables of a worker whose engine waits so long before each step; writes into ``folder``."""
    place = folder / "slow-engine"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(SLOW_STEPS.format(step_s=step_s))
    return {"PYTHONPATH": os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])}
