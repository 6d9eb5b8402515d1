"""``orcd demo`` as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orcd.cli.command_line import run
from orcd.settings import PREFIX
from tasks.__main__ import cli
from tasks.demo import demo
from tests.tasks.slow_engine import held_engine, hold, slow_engine

pytestmark = pytest.mark.skipif(not demo.MODEL.exists(), reason="the model that ships is not there")


def start(output: Path) -> subprocess.Popen[bytes]:
    """The demo, with an engine that may be held by the folder of the output."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tasks", "demo", "--output", str(output)],
        env=environment | slow_engine(output.parent, 0.0),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    return children


def test_the_demo_streams_haiku_writes_results_and_leaves_nothing_running(tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    with held_engine(tmp_path):
        process = start(output)
        assert process.stdout and process.stderr
        first = process.stdout.readline()
        children = descendants(process)
        assert len(children) >= 3  # Redis, the Celery process and the engine process
    shown, said = (text.decode() for text in process.communicate(timeout=120))
    assert process.returncode == 0
    assert not psutil.wait_procs(children, timeout=60)[1]
    results = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(results) == 10
    for result in results:
        assert result["text"].strip()
        assert f"> {result['prompt']}\n{result['text']}\n" in first.decode() + shown
        assert result["tokens_out"] > 0
    for percent in (0, 25, 50, 75, 100):
        assert f"{percent} %" in said
    assert f"10 jobs, {sum(result['tokens_out'] for result in results)} tokens" in said


def test_ctrl_c_stops_everything_in_order(tmp_path: Path) -> None:
    hold(tmp_path)
    process = start(tmp_path / "results.jsonl")
    assert process.stdout and process.stderr
    process.stdout.readline()  # the first prompt: everything runs
    children = descendants(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.decode().splitlines()[-1] == "orcd: CANCELLED: interrupted"
    assert not psutil.wait_procs(children, timeout=60)[1]


def test_a_worker_that_cannot_load_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ORCD_REDIS_URL", raising=False)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(demo.MODEL.read_bytes()[:1000])
    for model, problem in ((broken, "is truncated or damaged"), (tmp_path / "missing.gguf", "is not a file")):
        monkeypatch.setattr(demo, "MODEL", model)
        assert run(cli, ["demo", "--output", str(tmp_path / "results.jsonl")]) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(f"orcd: MODEL_LOAD_FAILED: {model}: ")
        assert problem in last


def test_a_result_file_that_cannot_be_written_is_found_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cli, ["demo", "--output", str(tmp_path / "missing" / "results.jsonl")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("results.jsonl: cannot be written (No such file or directory)")
