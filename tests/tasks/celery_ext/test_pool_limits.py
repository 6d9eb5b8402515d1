"""A worker whose system allows it no more processes or threads says so, and leaves in order."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.local.redis_server import free_port
from tests.tasks.worker_process import WorkerProcess

PROGRAM = """
import os, subprocess, sys, threading

def start(thread, start=threading.Thread.start):
    if thread.name == {refused!r}:
        raise RuntimeError("can't start new thread")  # as Python does
    start(thread)

def begin(process, command, *arguments, begin=subprocess.Popen.__init__, **options):
    if {refused!r} in command:
        raise BlockingIOError(11, os.strerror(11))
    begin(process, command, *arguments, **options)

if "celery" in sys.orig_argv:
    threading.Thread.start, subprocess.Popen.__init__ = start, begin
"""


@pytest.mark.parametrize("refused", ["job runner", "claimer", "finisher 0", "tasks.observe.health"])
def test_a_worker_that_may_have_no_more_threads_or_processes_says_so(
    redis_url: str, shallow_model: Path, tmp_path: Path, refused: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(PROGRAM.format(refused=refused))
    variables = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    if refused == "tasks.observe.health":
        variables["ORCD_METRICS_PORT"] = str(free_port())
    worker = WorkerProcess(redis_url, shallow_model, tmp_path, by_celery=True, by_exec=True, **variables)
    try:
        assert worker.process.wait(60) == 1
    finally:
        worker.process.kill()
    (error,) = worker.events("error")
    said = "the system gives this worker no further process, thread or file (Resource temporarily unavailable)"
    assert error["message"] == f"{said}; raise its limits: ulimit, those of its container, or systemd's TasksMax"
    assert [event["event"] for event in worker.events()][-1] == "shutdown"
    assert worker.events("celery") == []
    assert not _engines(tmp_path)


def _engines(folder: Path) -> list[Any]:
    """The processes of a worker that was started with the folder on its path."""
    return [
        process.info["cmdline"]
        for process in psutil.process_iter(["environ", "cmdline"])
        if str(folder) in (process.info["environ"] or {}).get("PYTHONPATH", "")
    ]
