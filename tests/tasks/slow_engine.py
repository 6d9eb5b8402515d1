"""An engine that waits before each step: jobs of few tokens run for as long as a fault takes, on any machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STEP_S = 0.02
"""Long beside a step of the model that ships, on a machine with little else to do."""
NUM_TOKENS = 15
"""How many each job has when an engine is held."""
FOLDER, HOLD = "slow-engine", "hold"

_SLOW_STEPS = """
import sys, time

if "--in-flight-fd" in sys.orig_argv:  # in the engine process
    from worker.engine.engine import Engine

    step = Engine.advance

    def is_held(engine):
        try:
            with open({hold!r}) as file:
                num_jobs = int(file.read())
        except FileNotFoundError:
            return False
        return sum(each.num_output >= {num_tokens} for each in engine._scheduler.running) >= num_jobs

    def step_later(engine):
        time.sleep({step_s})
        while is_held(engine):
            time.sleep(0.01)
        return step(engine)

    Engine.advance = step_later
"""


def slow_engine(folder: Path, step_s: float = STEP_S, before: str = "") -> dict[str, str]:
    """The variables of a worker whose engine waits so long before each step; writes into ``folder``.

    All its Python processes execute the lines ``before`` when they start.
    """
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(
        before + _SLOW_STEPS.format(step_s=step_s, hold=str(place / HOLD), num_tokens=NUM_TOKENS)
    )
    return {"PYTHONPATH": os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])}


@contextmanager
def held_engine(folder: Path, num_jobs: int = 1) -> Iterator[None]:
    """Within this the slow engine of ``folder`` waits once so many jobs have `NUM_TOKENS` tokens.

    So jobs of more tokens do not end before the test has done what it does to them, however late it runs.
    """
    hold = folder / FOLDER / HOLD
    hold.with_suffix(".new").write_text(str(num_jobs))
    hold.with_suffix(".new").rename(hold)
    try:
        yield
    finally:
        hold.unlink()
