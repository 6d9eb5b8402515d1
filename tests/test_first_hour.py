"""A new user's walk, docs/first-hour.md: every command in its order, on a Redis and a worker of its own.

``pytest -s`` shows how long each took; the page has such times.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from orcd.client import Client
from tasks.local.redis_server import free_port
from tests.conftest import wait_until
from tests.tasks.slow_engine import slow_engine
from tests.test_docs_commands import Shell, blocks, program_path, sign_of

PAGE = "first-hour.md"
ANSWERS = {
    "orcd doctor": ["good     redis rights", "warning  workers"],
    "until curl": ["OK"],
    "curl http://127.0.0.1:8000": ['"finish_reason"'],
    "curl -s http://127.0.0.1:9090/metrics": ["orcd_jobs_total", "orcd_engine_kv_use"],
    "orcd jobs --state failed": ["CONTEXT_LENGTH_EXCEEDED"],
    "orcd queue": ["nobody", "never"],
    "orcd drain": ["has left"],
}
"""What commands say, by how they begin."""
STATUSES = [
    ["CONTEXT_LENGTH_EXCEEDED", "again        it would fail again"],
    ["waits", "ahead"],
    ["no worker takes such"],
]
"""What `orcd status` says, one time after the other."""
UNSERVED = "qwen"
"""The model of a job that waits for another reason than the others; it may come first or last."""
SMALLER = {"200": "30"}
"""So that it does not take minutes."""


class Walk:
    """The page's commands, with the ports of this run; JOB is the last of the jobs that were listed last."""

    def __init__(self, folder: Path) -> None:
        self.ports = {port: str(free_port()) for port in ("6379", "8000", "9090", "5555")}
        inherited = {name: text for name, text in os.environ.items() if not name.startswith(("ORCD_", "FLOWER_"))}
        self.url = f"redis://127.0.0.1:{self.ports['6379']}/0"
        variables = {
            "PATH": program_path(), "ORCD_REDIS_URL": self.url, "ORCD_DRAIN_TIMEOUT_S": "1", "COLUMNS": "200",
            "FLOWER_BASIC_AUTH": "watcher:secret", "FLOWER_PORT": self.ports["5555"],
        }  # fmt: skip
        # Jobs still wait when they are looked at: all of them take 4 minutes, on any machine.
        self.slowness = {"ORCD_MAX_SEQUENCES": "2", **slow_engine(folder, step_s=0.05)}
        self.shell = Shell(folder, inherited | variables | self.slowness)
        self.job = ""
        self.statuses = iter(STATUSES)

    def run(self, command: str) -> None:
        """Run a command, and look whether it says what it should."""
        expected = next((texts for begin, texts in ANSWERS.items() if command.startswith(begin)), [])
        filled = self._fill(command)
        sign = sign_of(filled)
        if sign:
            self.shell.serve(filled, sign)
            return
        if command.endswith("&"):
            self.shell.begin(filled)
            return
        if command == "orcd queue":
            wait_until(self._is_queue_full)  # a person would take so long
        if command.startswith("orcd drain"):
            for name in self.slowness:
                del self.shell.environment[name]  # the next worker has to end them all
        said = self.shell.run(filled, fails=command.startswith('orcd generate "$('))
        if command.startswith("orcd status"):
            expected = next(self.statuses)
        for text in expected:
            assert text in said, f"{command}\n{said}"
        if command.startswith("orcd jobs"):
            jobs = map(json.loads, self.shell.run(f"{filled} --json").splitlines())
            self.job = [job["job_id"] for job in jobs if job["model"] != UNSERVED][-1]

    def _is_queue_full(self) -> bool:
        with Client(self.url) as client:
            queues = client.queues()
        return {bool(queue.workers) for queue in queues if queue.waiting} == {True, False}

    def _fill(self, command: str) -> str:
        for text, smaller in SMALLER.items():
            command = command.replace(text, smaller)
        for port, free in self.ports.items():
            command = command.replace(port, free)
        if "WORKER" in command:
            with Client(self.url) as client:
                command = command.replace("WORKER", client.workers()[0].name)
        if command.startswith("redis-server"):
            command = f"{command.removesuffix('--daemonize yes')} --port {self.ports['6379']}"
        command = re.sub(r"\s*&$", "", command)
        return command.replace("JOB", self.job)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page uses curl")
def test_a_first_hour_goes_as_the_page_tells_it(shallow_chat_model: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(shallow_chat_model)
    walk = Walk(tmp_path)
    try:
        for block in blocks(PAGE):
            for command in block.commands if not block.mark else ():
                start = time.monotonic()
                walk.run(command)
                print(f"{time.monotonic() - start:6.1f} s  {command}")
    finally:
        walk.shell.stop()
    assert next(walk.statuses, None) is None
