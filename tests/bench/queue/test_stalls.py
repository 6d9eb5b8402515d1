"""A process whose interpreter is held is seen to stand still."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.bench.queue.stalls import StallTrace

HELD_S = 0.3
NOTICED_S = 0.03  # at most so long after it begins a stall is seen
HOLDS = f"""
import time
time.sleep(0.05)  # the watch has begun
begin = time.monotonic()
num_items = 1_000_000
# The last of these calls, each of which holds the interpreter, is long.
while time.monotonic() - begin < {HELD_S + NOTICED_S}:
    num_items *= 2
    begin = time.monotonic()
    sum(range(num_items))
time.sleep(0.05)
"""


def test_a_thread_that_holds_the_interpreter_is_a_stall_in_which_the_process_is_busy(tmp_path: Path) -> None:
    trace = StallTrace(tmp_path)
    command = [sys.executable, "-c", HOLDS, "tasks"]
    subprocess.run(command, env=os.environ | trace.variables, check=True)
    longest = max(trace.read(), key=lambda stall: stall.end - stall.begin)
    assert longest.end - longest.begin >= HELD_S
    assert 0 < longest.busy_s <= 1.1 * (longest.end - longest.begin)


def test_a_process_that_waits_has_no_stall_in_which_it_is_busy(tmp_path: Path) -> None:
    trace = StallTrace(tmp_path)
    command = [sys.executable, "-c", f"import time; time.sleep({HELD_S})", "tasks"]
    subprocess.run(command, env=os.environ | trace.variables, check=True)
    assert all(stall.busy_s < HELD_S / 2 for stall in trace.read())
