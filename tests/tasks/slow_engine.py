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
FOLDER, HOLD, HOLD_JOBS = "slow-engine", "hold", "hold-jobs"

_SLOW_STEPS = """
import os, sys, time

if {{"worker", "--fd"}} <= set(sys.orig_argv):  # in the engine process
    from worker.engine.engine import Engine

    step, forget, num_ended = Engine.advance, Engine._forget, 0

    def forget_one(engine, sequence):
        global num_ended
        is_counted = os.path.exists({hold_jobs!r})
        num_ended = num_ended + (sequence.finish_reason != "abort") if is_counted else 0
        forget(engine, sequence)

    def is_held(engine):
        try:
            with open({hold_jobs!r}) as file:
                if num_ended >= int(file.read()):
                    return True
        except FileNotFoundError:
            pass
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

    Engine.advance, Engine._forget = step_later, forget_one
"""


def slow_engine(folder: Path, step_s: float = STEP_S, before: str = "") -> dict[str, str]:
    """The variables of a worker whose engine waits so long before each step; writes into ``folder``.

    All its Python processes execute the lines ``before`` when they start.
    """
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    lines = before + _SLOW_STEPS.format(step_s=step_s, hold=str(place / HOLD), hold_jobs=str(place / HOLD_JOBS))
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
    _write(folder, HOLD, num_tokens)


def hold_after(folder: Path, num_jobs: int) -> None:
    """Have the slow engine of ``folder`` take no step once so many sequences have ended, or a few more, until let go.

    A few, as several may end with one step. They are counted from the first such call on; those aborted do not count.
    """
    _write(folder, HOLD_JOBS, num_jobs)


def _write(folder: Path, name: str, number: int) -> None:
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    (place / "new").write_text(str(number))
    (place / "new").rename(place / name)


def let_go(folder: Path) -> None:
    """Have the jobs of an engine that is held go on to their ends."""
    for name in (HOLD, HOLD_JOBS):
        (folder / FOLDER / name).unlink(missing_ok=True)
