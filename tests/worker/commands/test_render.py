"""``orcd render``."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tests.orcd.cli.command_line import one_error
from worker.commands.main import run

HELLO = [{"role": "user", "content": "hi"}]


def feed(monkeypatch: pytest.MonkeyPatch, *lines: object) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(map(json.dumps, lines)).encode())))


def test_lines_are_answered_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}:{{ m.content + mark }}{% endfor %}"
                        "{% if messages|length > 1 %}{{ raise_exception('one only') }}{% endif %}")  # fmt: skip
    variables = {"mark": "!"}
    feed(
        monkeypatch,
        {"messages": HELLO, "variables": variables},
        {"messages": HELLO * 2, "variables": variables},
        {"messages": "hi"},
    )
    assert run(["render", str(template), "--jsonl"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers[0] == {"text": "user:hi!"}
    assert "one only" in answers[1]["error"]
    assert answers[2].keys() == {"error"}


def test_a_file_of_messages_is_printed_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template, messages = tmp_path / "t.jinja", tmp_path / "messages.json"
    template.write_text("{{ messages[0].content }}")
    messages.write_text(json.dumps(HELLO))
    assert run(["render", str(template), str(messages)]) == 0
    assert capsys.readouterr().out == "hi"


def test_a_model_brings_its_own_template(
    demo_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(monkeypatch, HELLO)
    assert run(["render", str(demo_model), "-"]) == 0
    prompt = capsys.readouterr().out
    assert "hi" in prompt
    assert len(prompt) > len("hi")


def test_messages_that_are_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template, messages = tmp_path / "t.jinja", tmp_path / "messages.json"
    template.write_text("{{ messages[0].content }}")
    messages.write_text("[" * 100_000)
    assert run(["render", str(template), str(messages)]) == 2
    one_error(capsys, "INVALID_REQUEST")


def test_a_template_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binary, absent = tmp_path / "binary.jinja", tmp_path / "absent.jinja"
    binary.write_bytes(b"\xff")
    for path, reason in ((binary, "it is not UTF-8"), (absent, "No such file or directory")):
        assert run(["render", str(path), "--jsonl"]) == 2
        assert one_error(capsys, "INVALID_REQUEST") == f"{path}: cannot be read ({reason})"
