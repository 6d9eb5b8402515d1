"""``orcd batch`` on a prompt file: run again as long as it says that this goes on where it stopped."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from orcd.result import Choice
from tests.chaos.clients.cases import Case
from tests.chaos.clients.seen import Seen
from tests.chaos.clients.sync_clients import END_TIMEOUT_S
from tests.chaos.system.worker_fleet import ROOT

NUM_LINES = 8
NUM_RUNS = 4
RUN_TIMEOUT_S = 1.5 * END_TIMEOUT_S
_START = "import sys; from orcd.cli.main import main; main()"


class BatchClient:
    """One run after the other, each with a file of its own."""

    def __init__(self, redis_url: str, chance: random.Random) -> None:
        self._redis_url = redis_url
        self._chance = chance

    def run(self, cases: Sequence[Case], seen: Seen) -> None:
        """Some of the cases, a line each."""
        chosen = self._chance.sample(cases, min(NUM_LINES, len(cases)))
        seen.num_jobs = len(chosen)
        with tempfile.TemporaryDirectory(prefix="orcd-chaos-") as name:
            source, output = Path(name, "in.jsonl"), Path(name, "out.jsonl")
            lines = [json.dumps({"id": place, **case.fields}) for place, case in enumerate(chosen)]
            source.write_text("\n".join(lines) + "\n")
            stderr = ""
            for _ in range(NUM_RUNS):
                try:
                    code, stderr = self._run(source, output)
                except subprocess.TimeoutExpired as expired:
                    said = (expired.stderr or b"").decode(errors="replace").strip()[-300:]
                    num_done = len(_records(output))
                    detail = f"orcd batch did not end in {RUN_TIMEOUT_S:.0f} s with {num_done} of {len(chosen)} results"
                    seen.blame("hung", f"{detail}: {said}")
                    return
                if code == 0 or "run the same command again" not in stderr:
                    break
            self._check(output, chosen, seen, stderr)

    def _run(self, source: Path, output: Path) -> tuple[int, str]:
        ran = subprocess.run(
            [sys.executable, "-P", "-c", _START, "batch", str(source), str(output), "--redis", self._redis_url],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
        )
        return ran.returncode, ran.stderr

    def _check(self, output: Path, cases: Sequence[Case], seen: Seen, stderr: str) -> None:
        found = {record["id"]: record for record in _records(output)}
        failed = {record["id"]: record for record in _records(output.with_name(output.name + ".errors.jsonl"))}
        for place, case in enumerate(cases):
            if place in found:
                self._compare(found[place], case, seen)
            elif place in failed:
                seen.error = failed[place]["code"]
                seen.detail = seen.detail or failed[place]["message"]
            else:
                seen.blame("lost", f"line {place} is in neither file: {stderr.strip()[-300:]}")

    def _compare(self, record: dict[str, Any], case: Case, seen: Seen) -> None:
        if "choices" in record:
            seen.compare(tuple(msgspec.convert(record["choices"], list[Choice], str_keys=True)), case.answer)
        else:
            seen.compare_text(record["text"], case.answer)


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
