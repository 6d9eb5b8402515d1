"""``orcd tokenize``."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from worker.commands.main import run


def test_text_becomes_ids_and_text_again(demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tokenize", str(demo_model), "the rain"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["ids"]) > 1
    assert "the rain" in answer["text"]


def test_lines_are_answered_one_by_one(
    demo_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["tokenize", str(demo_model), "the rain"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["ids"]
    lines = b'{"text": "the rain"}\n\nbroken\n{"txt": "a"}\n{"text": "\\ud800"}\n{"text": "a", "parse_special": true}\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert run(["tokenize", str(demo_model), "--jsonl"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers[0] == whole
    assert [answer.keys() for answer in answers[1:]] == [{"error"}, {"error"}, {"error"}, {"ids", "text"}]


def test_special_tokens_are_added_and_parsed_as_the_line_says(
    demo_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"text": "<|im_end|>", "add_special": False, "parse_special": parsed} for parsed in (True, False)]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(map(json.dumps, lines)).encode())))
    assert run(["tokenize", str(demo_model), "--jsonl"]) == 0
    parsed, plain = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert len(parsed["ids"]) == 1 < len(plain["ids"])
    assert parsed["text"] == plain["text"] == "<|im_end|>"


def test_a_reader_that_has_seen_enough_ends_it_quietly(demo_model: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "tokenize", str(demo_model), "--jsonl"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin and process.stdout and process.stderr
    process.stdin.write(b'{"text": "a"}\n')
    process.stdin.flush()
    assert process.stdout.readline()
    process.stdout.close()
    with process.stdin:
        process.stdin.write(b'{"text": "b"}\n' * 10)
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(60) == 1
