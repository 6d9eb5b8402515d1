"""Engines that die of one prompt: of a signal of their own, as of a bug in a kernel."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[3]
DEADLY_IDS = (17, 4, 17, 4)
"""What such a prompt begins with; no client's prompt does."""
DEADLY_AT = 3
"""So many tokens are drawn before."""

_SITECUSTOMIZE = f"""
import os, resource, signal, sys

if "--in-flight-fd" in sys.orig_argv:  # the engine process, not the Celery process
    from worker.engine.runner import SynchronousRunner

    launch = SynchronousRunner.launch

    def launch_or_die(runner, chunks, **options):
        for chunk in chunks:
            sequence = chunk[0]
            if tuple(sequence.token_ids[:4]) == {DEADLY_IDS} and sequence.num_output >= {DEADLY_AT}:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                os.kill(os.getpid(), signal.SIGSEGV)
        launch(runner, chunks, **options)

    SynchronousRunner.launch = launch_or_die
"""


def mortal_environment(folder: Path) -> dict[str, str]:
    """What a worker needs in its environment for its engines to be mortal; writes into ``folder``."""
    place = folder / "mortal-engine"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    return {"PYTHONPATH": os.pathsep.join([str(place), str(ROOT)])}
