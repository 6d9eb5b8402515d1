"""What the Celery process asks of Python's interpreter, which its threads share."""

from __future__ import annotations

import gc
import sys

SWITCH_INTERVAL_S = 0.001
"""How long a thread may keep the interpreter that others wait for. Six of them have their part between a job's end and
the start of its client's next one: with Python's 5 ms they waited for each other longer than for anything else."""
MORE_OBJECTS = 10_000
"""The garbage collector looks at new objects when there are so many more. At Python's 700 it stopped all threads 100
times a second where 500 jobs ended in that: for a third of a millisecond, now and then for several."""


def prepare_to_serve() -> None:
    """Once all is there that stays, switch the collector on, which leaves that out; have threads take short turns."""
    gc.freeze()
    gc.set_threshold(MORE_OBJECTS)
    gc.enable()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
