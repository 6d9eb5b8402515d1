"""A batch of OpenAI's API whose gateway and worker are killed, beside an undisturbed one and `orcd batch`.

    python -m tests.bench.gateway.batches [--lines 5000]

The same file, of which each tenth line is broken in one way or another, is run three times on the CPU device with the
model that ships, each time with an empty Redis. In the third run the gateway that runs the batch gets SIGKILL after a
quarter of the lines, and the worker after a half; another one of each goes on. Results and errors have to be equal but
for ids and times. Exit code 1 if they are not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import redis

from tasks.local.redis_server import RedisServer
from tests.conftest import DEMO_MODEL
from tests.orcd.gateway.gateway_process import GatewayProcess
from tests.tasks.openai_batch import OpenaiBatch, answers, failures
from tests.tasks.worker_process import WorkerProcess

ENDPOINT = "/v1/chat/completions"
GATEWAY_DIES_AT, WORKER_DIES_AT = 0.25, 0.5
"""Shares of the lines that have ended by then."""
MOST_S = 3600.0
LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one run: the time from the first call to the end, results and errors, and how many jobs it made."""

    name: str
    seconds: float
    answers: dict[str, Any]
    failures: dict[int, str | None]
    num_jobs: int


class Scene:
    """A Redis and a worker for one run, and a folder for what it writes."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orcd-batches-")))
        self._server = stack.enter_context(RedisServer())
        self._worker = self._start_worker()

    def run_command(self, source: Path) -> Outcome:
        """Run the file with `orcd batch`."""
        output = self._folder / "out.jsonl"
        begin = time.monotonic()
        command = [sys.executable, "-P", "-m", "orcd", "batch", str(source), str(output)]
        environment = os.environ | {"ORCD_REDIS_URL": self._server.url}
        subprocess.run(command, env=environment, capture_output=True)  # 1: some lines have failed, as they should
        return self._outcome("orcd batch", begin, output, output.with_name(output.name + ".errors.jsonl"))

    def run_batch(self, source: Path, num_lines: int, *, is_disturbed: bool) -> Outcome:
        """Run the file as a batch of a gateway."""
        gateway, sdk = self._start_gateway()
        begin = time.monotonic()
        with source.open("rb") as file:
            uploaded = sdk.files.create(file=file, purpose="batch")
        batch = sdk.batches.create(input_file_id=uploaded.id, endpoint=ENDPOINT, completion_window="24h")
        if is_disturbed:
            self._wait(sdk, batch.id, lambda now: _num_ended(now) >= GATEWAY_DIES_AT * num_lines)
            gateway.process.kill()
            gateway, sdk = self._start_gateway()
            self._wait(sdk, batch.id, lambda now: _num_ended(now) >= WORKER_DIES_AT * num_lines)
            self._worker.kill()
            self._worker = self._start_worker()
        ended = self._wait(sdk, batch.id, lambda now: now.status == "completed")
        paths = []
        for file_id in (ended.output_file_id, ended.error_file_id):
            paths.append(self._folder / f"{file_id}.jsonl")
            paths[-1].write_bytes(sdk.files.content(file_id).content)
        name = "batch, gateway and worker killed" if is_disturbed else "batch"
        return self._outcome(name, begin, *paths)

    def _start_worker(self) -> WorkerProcess:
        return self._stack.enter_context(WorkerProcess(self._server.url, DEMO_MODEL, self._folder))

    def _start_gateway(self) -> tuple[GatewayProcess, openai.OpenAI]:
        gateway = self._stack.enter_context(GatewayProcess(self._server.url, "--files-dir", str(self._folder)))
        return gateway, self._stack.enter_context(openai.OpenAI(base_url=gateway.url, api_key="none"))

    def _wait(self, sdk: openai.OpenAI, batch_id: str, condition: Callable[[Any], bool]) -> Any:
        deadline = time.monotonic() + MOST_S
        while not condition(batch := sdk.batches.retrieve(batch_id)):
            assert batch.status in ("validating", "in_progress", "finalizing"), batch
            assert time.monotonic() < deadline, batch
            time.sleep(LOOK_S)
        return batch

    def _outcome(self, name: str, begin: float, output: Path, errors: Path) -> Outcome:
        seconds = time.monotonic() - begin
        with redis.Redis.from_url(self._server.url) as connection:
            num_jobs = sum(1 for _ in connection.scan_iter("orcd:{*}:job", count=1000))
        return Outcome(name, seconds, answers(output), failures(errors), num_jobs)


def measure(num_lines: int, long_line_bytes: int = 1 << 20) -> tuple[list[Outcome], list[str]]:
    """The three runs, and what is wrong with them."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.jsonl"
        file = OpenaiBatch(num_lines, long_line_bytes, only_chats=True)
        file.write(source)
        outcomes = []
        for run in (
            lambda scene: scene.run_command(source),
            lambda scene: scene.run_batch(source, num_lines, is_disturbed=False),
            lambda scene: scene.run_batch(source, num_lines, is_disturbed=True),
        ):
            with ExitStack() as stack:
                outcomes.append(run(Scene(stack)))
    problems = []
    for outcome in outcomes:
        if outcome.answers.keys() != set(file.good) or outcome.failures != file.bad:
            problems.append(f"{outcome.name}: results and errors are not those of all lines, each once")
        if outcome.answers != outcomes[0].answers:
            problems.append(f"{outcome.name}: other results than those of {outcomes[0].name}")
        if outcome.num_jobs != outcomes[0].num_jobs:
            problems.append(f"{outcome.name}: {outcome.num_jobs} jobs, not {outcomes[0].num_jobs}")
    return outcomes, problems


def _num_ended(batch: Any) -> int:
    counts = batch.request_counts
    return int(counts.completed + counts.failed)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.gateway.batches", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--lines", type=int, default=5000)
    outcomes, problems = measure(parser.parse_args(argv).lines)
    print("| run | seconds | results | errors | jobs |\n|---|---|---|---|---|")
    for each in outcomes:
        print(f"| {each.name} | {each.seconds:.1f} | {len(each.answers)} | {len(each.failures)} | {each.num_jobs} |")
    print("\n".join(problems) or "\nequal but for ids and times")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
