"""An engine that waits before each step: jobs of few tokens run for as long as a fault takes, on any machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STEP_S = 0.02
"""Long beside a step of the model that ships, on a machine with little else to do."""
NUM_TOKENS = 10
"""How many each job has when an engine is held; not all need be in its log, as text may be held back."""
FOLDER, HOLD = "slow-engine", "hold"

_SLOW_STEPS = """
import sys, time

if "--in-flight-fd" in sys.orig_argv:  # in the engine process
    from worker.engine.engine import Engine

    step = Engine.advance

    def is_held(engine):
        running, waiting = engine._scheduler.running, engine._scheduler.waiting
        if waiting and len(running) < engine.max_sequences:
            return False
        try:
            with open({hold!r}) as file:
                num_tokens = int(file.read())
        except FileNotFoundError:
            return False
        return all(each.num_output >= num_tokens for each in running)

    def step_later(engine):
        time.sleep({step_s})
        if not is_held(engine):
            return step(engine)
        answers, engine._answers = engine._answers, []  # of what was aborted
        engine.outputs.answer(answers)
        time.sleep(0.005)

    Engine.advance = step_later
"""


def slow_engine(folder: Path, step_s: float = STEP_S, before: str = "") -> dict[str, str]:
    """The variables of a worker whose engine waits so long before each step; writes into ``folder``.

    All its Python processes execute the lines ``before`` when they start.
    """
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    lines = before + _SLOW_STEPS.format(step_s=step_s, hold=str(place / HOLD))
    (place / "sitecustomize.py").write_text(lines)
    return {"PYTHONPATH": os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])}


@contextmanager
def held_engine(folder: Path, num_tokens: int = NUM_TOKENS) -> Iterator[None]:
    """Within this no job gets many more tokens from the slow engine of ``folder``: it waits when each has so many.

    So jobs of more tokens do not end before the test has done what it does to them, however late it runs. A job that
    comes later has the others go on, too, by so many tokens. Requests are taken and aborted as ever.
    """
    hold(folder, num_tokens)
    try:
        yield
    finally:
        let_go(folder)


def hold(folder: Path, num_tokens: int = NUM_TOKENS) -> None:
    """Hold the engine as in `held_engine`, until it is let go."""
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    (place / "new").write_text(str(num_tokens))
    (place / "new").rename(place / HOLD)


def let_go(folder: Path) -> None:
    """Have the jobs of an engine that is held go on to their ends."""
    (folder / FOLDER / HOLD).unlink()
