"""An engine that runs no model: at a steady pace it hands out random token ids, as a fast device would."""

from __future__ import annotations

import os
from pathlib import Path

_SITECUSTOMIZE = """
import sys

if "--fd" in sys.orig_argv:  # the engine process, not the Celery process
    import random
    import time

    from worker.engine.runner import SynchronousRunner

    def launch(runner, chunks, **options):
        now = time.monotonic()
        due = getattr(runner, "due", now) + {step_s}
        time.sleep(max(0.0, due - now))
        runner.due = max(due, now)
        runner._results.append([random.randrange(256) if chunk.draws else None for chunk in chunks])

    SynchronousRunner.launch = launch
"""


def drawn_ids(folder: Path, step_s: float) -> dict[str, str]:
    """What a worker needs in its environment for such an engine of so many seconds a step; writes into ``folder``."""
    place = folder / "drawn-ids"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(step_s=step_s))
    return {"PYTHONPATH": os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])}
