from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orcd.cli.command_line import run
from orcd.client import Client
from tasks.__main__ import cli
from tests.tasks.worker_process import WorkerProcess


def plan(arguments: list[str], model: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]]]:
    """The exit code and the printed objects of ``orcd plan --json``."""
    code = run(cli, ["plan", *arguments, "--model-file", str(model), "--json"])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text(
        '{"id": "a", "prompt": "the rain", "max_tokens": 10, "n": 2}\n'
        '{"id": "b", "messages": [{"role": "user", "content": "Write a haiku about rain"}]}\n'
        '{"id": "c", "prompt_token_ids": [3, 4, 5], "max_tokens": 4}\n'
        '{"id": "d", "prompt": "rain", "max_tokens": 5000}\n'
        '{"id": "e", "prompt_token_ids": [999999]}\n'
        '{"id": "f", "prompt": 1}\n'
        '{"id": "a", "prompt": "the rain"}\n'
    )
    return path


def test_tokens_are_those_that_a_worker_counts(
    source: Path, shallow_chat_model: Path, redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = [json.loads(line) for line in source.read_text().splitlines()[:3]]
    with WorkerProcess(redis_url, shallow_chat_model, tmp_path), Client(redis_url) as client:
        for request in requests:
            del request["id"]
        job_ids = client.submit_many([request | {"max_tokens": 1, "n": 1} for request in requests])
        counted = [client.result(job_id, timeout=60).tokens_in for job_id in job_ids]
    code, [*failures, totals] = plan([str(source)], shallow_chat_model, capsys)
    assert code == 1
    assert totals == {
        "context_length": 1024,
        "num_lines": 7,
        "num_requests": 3,
        "num_failed": 4,
        "num_unlimited": 1,
        "tokens_in": sum(counted),
        "max_tokens_out": 2 * 10 + 1024 - counted[1] + 4,
        "longest_prompt": counted[1],
        "longest_line": "line 2",
    }
    assert [(failure["line"], failure["id"], failure["code"]) for failure in failures] == [
        (4, "d", "CONTEXT_LENGTH_EXCEEDED"),
        (5, "e", "INVALID_REQUEST"),
        (6, "f", "INVALID_REQUEST"),
        (7, "a", "INVALID_REQUEST"),
    ]


def test_people_get_a_page(source: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli, ["plan", str(source), "--model-file", str(demo_model)]) == 1
    page = capsys.readouterr().out
    assert "line 4 (id d): CONTEXT_LENGTH_EXCEEDED: " in page
    assert "1,024 tokens for a prompt with its answer" in page
    assert "(1 requests without max_tokens)" in page


def test_of_many_failures_people_see_the_first(
    demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("broken\n" * 50)
    assert run(cli, ["plan", str(source), "--model-file", str(demo_model)]) == 1
    page = capsys.readouterr().out
    assert page.count("INVALID_REQUEST") == 20
    assert "and 30 more, which --json lists" in page


def test_the_command_line_is_that_of_a_batch(
    demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "in.csv"
    table.write_text("text\nrain\nsnow\n")
    arguments = [str(table), "--prompt", "About {text}", "--max-tokens", "7", "--context-length", "200"]
    code, [totals] = plan(arguments, demo_model, capsys)
    assert code == 0
    assert (totals["num_requests"], totals["max_tokens_out"], totals["context_length"]) == (2, 14, 200)
    assert plan([*arguments, "--system", "x " * 300], demo_model, capsys)[0] == 1
    assert plan([*arguments, "--response-format", '{"type": "json_object"}'], demo_model, capsys)[0] == 0


def test_a_file_that_cannot_be_read_is_named(
    demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cli, ["plan", str(tmp_path / "missing"), "--model-file", str(demo_model)]) == 2
    assert "missing: cannot be read (No such file or directory)" in capsys.readouterr().err
