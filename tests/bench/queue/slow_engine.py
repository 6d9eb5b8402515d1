"""Engines that take their time for every step, so that a small model's job lasts as long as a large one's."""

from __future__ import annotations

import os
from pathlib import Path

_SITECUSTOMIZE = """
import sys

if "--fd" in sys.orig_argv:  # the engine process, not the Celery process
    import time

    from worker.engine.runner import SynchronousRunner

    launch = SynchronousRunner.launch

    def slow_launch(runner, chunks, **options):
        time.sleep({step_s})
        launch(runner, chunks, **options)

    SynchronousRunner.launch = slow_launch
"""


def slow_environment(folder: Path, step_s: float) -> dict[str, str]:
    """What a worker needs in its environment for steps of at least so many seconds; writes into ``folder``."""
    place = folder / "slow-engine"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(step_s=step_s))
    return {"PYTHONPATH": os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])}
