"""Types that threads read messages and requests into: no two of them may have msgspec learn one at the same time."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
USED = (
    "orcd.gateway.batches.batch_store:BatchObject",
    "orcd.gateway.batches.file_store:FileObject",
    "orcd.monitoring.queue_watch:QueueFigures",
    "orcd.request:Request",
    "orcd.sampling:SamplingFields",
    "orcd.status:WorkerStatus",
    "orcd.store.enqueue:RecordedMessage",
    "tasks.celery_ext.message:_Body",
    "tasks.celery_ext.message:_Envelope",
    "tasks.celery_ext.message:_Headers",
    "tasks.celery_ext.message:_Properties",
    "tasks.control_listener:_Control",
)
"""Those that are read into by `msgspec.convert`, or by a decoder that threads share."""

FIRST_USE = """
import importlib, sys
import msgspec
names = [name.split(":") for name in sys.argv[1:]]
kinds = [getattr(importlib.import_module(module), kind) for module, kind in names]

def learn(*_):
    raise LookupError

msgspec._utils._eval_type = learn  # what msgspec looks at a Struct's fields with
for kind in kinds:
    try:
        msgspec.json.Decoder(kind)
    except LookupError:
        print(kind)
"""

THREADS = """
import sys, threading
sys.setswitchinterval(1e-6)
from orcd.request import parse
barrier = threading.Barrier(12)

def submit():
    barrier.wait()
    parse({"prompt": "x", "model": "m", "priority": 1, "tenant": "t"})

threads = [threading.Thread(target=submit) for _ in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_types_are_known_when_their_modules_are_imported() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_USE, *USED], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("", "")


def test_threads_may_begin_to_submit_at_the_same_moment() -> None:
    """One of three such processes died of SIGSEGV."""
    codes = [subprocess.run([sys.executable, "-c", THREADS], timeout=120).returncode for _ in range(5)]
    assert codes == [0] * 5


def test_whoever_decodes_has_a_decoder_which_is_made_when_its_module_is_imported() -> None:
    late = re.compile(r"\.decode\(.*\btype=(?!dict\[|list\[)\w+|^ +\w*.*\bDecoder\((?!kind\))\w")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in ("orcd", "tasks", "worker")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in path.read_text().splitlines()
        if late.search(line) and "msgspec" in line
    ]
    assert found == []


def test_nobody_else_converts() -> None:
    """Whoever does names the type in ``USED``."""
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("orcd", "tasks", "worker")
        for path in (ROOT / folder).rglob("*.py")
        if "msgspec.convert(" in path.read_text()
    }
    assert found == {"orcd/sampling.py", "orcd/status.py", "tasks/celery_ext/message.py"}
