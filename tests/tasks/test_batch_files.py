"""Prompt files through the whole system: stopped, killed, with dying workers, and in every format."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import wait_until
from tests.orcd.cli.command_line import run_apart
from tests.tasks.openai_batch import OpenaiBatch, answers, failures
from tests.tasks.slow_engine import hold_after, let_go, slow_engine
from tests.tasks.worker_process import WorkerProcess

NUM_LINES = 200


class BatchProcess:
    """``orcd batch`` as people run it."""

    def __init__(self, redis_url: str, *arguments: str, stdin: bytes | None = None) -> None:
        self._stdin = stdin
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "orcd", "batch", *arguments],
            env=os.environ | {"ORCD_REDIS_URL": redis_url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def stop(self, sent: signal.Signals, output: Path, num_results: int) -> int:
        """Send a signal once so many results are there."""
        wait_until(lambda: output.exists() and output.read_bytes().count(b"\n") >= num_results, 60)
        self._process.send_signal(sent)
        return self.finish()[0]

    def finish(self) -> tuple[int, bytes, str]:
        """Exit code, standard output and standard error."""
        out, err = self._process.communicate(self._stdin, timeout=100)
        return self._process.returncode, out, err.decode()


def test_a_stopped_and_killed_batch_gives_what_an_undisturbed_one_does(
    redis_url: str, shallow_chat_model: Path, tmp_path: Path
) -> None:
    variables = {"ORCD_MAX_SEQUENCES": "8", **slow_engine(tmp_path, 0.0)}
    source, output, undisturbed = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "undisturbed.jsonl"
    batch = OpenaiBatch(NUM_LINES)
    batch.write(source)
    with WorkerProcess(redis_url, shallow_chat_model, tmp_path, **variables) as worker:
        assert BatchProcess(redis_url, str(source), str(undisturbed)).finish()[0] == 1
        hold_after(tmp_path, 20)
        assert BatchProcess(redis_url, str(source), str(output)).stop(signal.SIGINT, output, 20) == 130
        hold_after(tmp_path, 70)
        assert BatchProcess(redis_url, str(source), str(output)).stop(signal.SIGKILL, output, 60) == -signal.SIGKILL
        worker.process.terminate()
        let_go(tmp_path)
    hold_after(tmp_path, 50)
    with WorkerProcess(redis_url, shallow_chat_model, tmp_path, **variables) as worker:
        last = BatchProcess(redis_url, str(source), str(output))
        wait_until(lambda: output.read_bytes().count(b"\n") >= 100, 60)
        worker.kill()
        let_go(tmp_path)
        with WorkerProcess(redis_url, shallow_chat_model, tmp_path, **variables):
            code, _, told = last.finish()
    assert code == 1
    assert f"{len(batch.good)} of {NUM_LINES} lines have results" in told
    assert answers(output) == answers(undisturbed)
    assert answers(output).keys() == set(batch.good)
    for path in (output, undisturbed):
        assert failures(path.with_name(path.name + ".errors.jsonl")) == batch.bad


def test_the_same_content_has_the_same_answers_in_every_format(
    redis_url: str, shallow_chat_model: Path, tmp_path: Path
) -> None:
    subjects = [f"Write a haiku about {subject}" for subject in ("rain", "snow, and ice", "a cat", 'a "quote"')]
    text = "".join(f"{subject}\n" for subject in subjects).encode()
    (tmp_path / "in.txt").write_bytes(text)
    (tmp_path / "in.gz").write_bytes(gzip.compress(text))
    (tmp_path / "first.txt").write_bytes(text.split(b"\n")[0])
    (tmp_path / "others.txt").write_bytes(text.split(b"\n", 1)[1])
    rows = ["topic;style", *('"' + s.removeprefix("Write a haiku about ").replace('"', '""') + '";x' for s in subjects)]
    (tmp_path / "in.csv").write_text("\n".join(rows))
    forms: dict[str, tuple[list[str], list[str]]] = {
        "text": (["in.txt"], []),
        "gzip": (["in.gz"], []),
        "CSV": (["in.csv"], ["--prompt", "Write a haiku about {topic}"]),
        "several": (["first.txt", "others.txt"], []),
    }
    options = ["--order", "input", "--temperature", "0", "--max-tokens", "6"]
    environment = os.environ | {"ORCD_REDIS_URL": redis_url}
    found = {}
    with WorkerProcess(redis_url, shallow_chat_model, tmp_path):
        code, out, told = BatchProcess(redis_url, "-", "-", *options, stdin=text).finish()
        assert code == 0, told
        found["a pipe"] = tuple(json.loads(line)["text"] for line in out.splitlines())
        for form, (names, more) in forms.items():
            inputs, output = [str(tmp_path / name) for name in names], tmp_path / f"{form}.jsonl"
            code, _, told = run_apart(["batch", *inputs, str(output), *more, *options], tmp_path, environment)
            assert code == 0, told
            found[form] = tuple(json.loads(line)["text"] for line in output.read_text().splitlines())
    assert len(set(found["text"])) > 1
    assert set(found.values()) == {found["text"]}
