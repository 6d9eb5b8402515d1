"""``orcd batch`` that is stopped, killed, tried again and cancelled, with a worker played by the test."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from orcd.batch.batch_file import BatchFile
from orcd.batch.line import Line
from orcd.client import Client
from orcd.result import Result
from orcd.store import schema
from tests.conftest import wait_until
from tests.orcd.answering_worker import AnsweringWorker, FailingWorker
from tests.orcd.cli.command_line import records, requests_in, run
from tests.orcd.cli.conftest import StandardInput
from tests.orcd.job_writer import MakeStore

TEXT = b"rain\nsnow, and ice\n"


def test_an_interrupted_batch_says_how_to_go_on_and_does(
    client: Client, worker: AnsweringWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f'{{"prompt": "{number}"}}\n' for number in range(20)))
    write = BatchFile.succeed

    def write_and_stop(file: BatchFile, line: Line, result: Result) -> None:
        write(file, line, result)
        if file.num_succeeded == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BatchFile, "succeed", write_and_stop)
        assert run(["batch", str(source), str(output)]) == 130
    stopped = capsys.readouterr().err
    assert "stopped with 13 of 20 lines left" in stopped
    assert "run the same command again to go on" in stopped
    assert run(["batch", str(source), str(output)]) == 0
    assert "20 of 20 lines have results" in capsys.readouterr().err


def test_failed_lines_are_run_again_by_name_of_the_output(
    client: Client, failing_worker: FailingWorker, connection: redis.Redis, tmp_path: Path,
    standard_input: StandardInput,    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "out.jsonl"
    standard_input(TEXT)
    assert run(["batch", "-", "out.jsonl", "--max-tokens", "5"]) == 1
    assert "orcd batch --retry out.jsonl runs them again" in capsys.readouterr().err
    assert len(records(tmp_path / "out.jsonl.errors.jsonl")) == 2
    failing_worker.end = lambda writer: writer.end()  # type: ignore[method-assign]
    monkeypatch.chdir("/")
    assert run(["batch", "--retry", str(output)]) == 0
    assert sorted(result["line"] for result in records(output)) == [1, 2]
    assert len(requests_in(connection)) == 4
    assert {request["max_tokens"] for request in requests_in(connection)} == {5}
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl"]  # noqa: PTH208


def test_what_a_stopped_run_left_behind_can_be_cancelled_and_run_again(
    client: Client, connection: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], make_store: MakeStore,
) -> None:  # fmt: skip
    source, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_bytes(TEXT)

    def interrupt(self: Client, job_ids: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Client, "statuses", interrupt)
        assert run(["batch", str(source), str(output)]) == 130
    stopped = capsys.readouterr().err
    assert "2 jobs go on in the background" in stopped
    assert f"orcd batch --cancel {output}" in stopped
    assert run(["batch", "--cancel", str(output)]) == 0
    assert "2 jobs cancelled" in capsys.readouterr().err
    assert {connection.hget(key, "state") for key in connection.keys("orcd:*:job")} == {b"cancelled"}
    assert run(["batch", "--cancel", str(output)]) == 0
    assert "0 jobs cancelled" in capsys.readouterr().err
    worker = AnsweringWorker(connection, make_store)
    assert run(["batch", str(source), str(output)]) == 0
    worker.stop()
    assert sorted(result["line"] for result in records(output)) == [1, 2]


def test_a_stopped_run_without_a_file_cancels_its_jobs(
    client: Client, connection: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = tmp_path / "in.txt"
    source.write_bytes(TEXT)

    def interrupt(self: Client, job_ids: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "statuses", interrupt)
    assert run(["batch", str(source), "-"]) == 130
    assert "2 jobs cancelled" in capsys.readouterr().err
    assert {connection.hget(key, "state") for key in connection.keys("orcd:*:job")} == {b"cancelled"}


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_without_a_file_that_is_told_to_end_cancels_its_jobs(
    sent: signal.Signals, client: Client, connection: redis.Redis, tmp_path: Path
) -> None:
    source = tmp_path / "in.txt"
    source.write_bytes(TEXT)
    process = subprocess.Popen([sys.executable, "-m", "orcd", "batch", str(source), "-"], stderr=subprocess.PIPE)
    wait_until(lambda: connection.zcard(schema.QUEUED) == 2)
    process.send_signal(sent)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"2 jobs cancelled" in told
    assert connection.zcard(schema.QUEUED) == 0


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_killed_goes_on_and_runs_every_line_once(
    sent: signal.Signals, client: Client, worker: AnsweringWorker, connection: redis.Redis, tmp_path: Path
) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("".join(f"line {number}\n" for number in range(300)))
    command = [sys.executable, "-m", "orcd", "batch", str(source), str(output)]
    worker.max_jobs = 100  # so that it is not over before the signal, however late this process runs
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    wait_until(lambda: output.exists() and output.read_bytes().count(b"\n") > 20, 60)
    process.send_signal(sent)
    _, told = process.communicate(timeout=60)
    worker.max_jobs = math.inf
    assert process.returncode == (130 if sent != signal.SIGKILL else -signal.SIGKILL)
    assert (b"run the same command again to go on" in told) == (sent != signal.SIGKILL)
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    assert sorted(result["line"] for result in records(output)) == list(range(1, 301))
    assert len(connection.keys("orcd:*:job")) == 300
