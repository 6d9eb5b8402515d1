"""``python -m tasks``: what its commands refuse and pass on. `tests/orcd/cli` runs them as `orcd` starts them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from celery import Celery

from orcd.cli.command_line import run
from orcd.client import Client
from tasks.__main__ import cli

COMMANDS = {
    "demo": {"--output", "--redis"},
    "worker": {"--model", "--tokenizer", "--device", "--redis", "--name", "--vram-fraction", "--vram-bytes",
               "--vram-check-s", "--kv-cache-type", "--metrics-port"},
    "plan": {"--model-file", "--tokenizer", "--chat-template", "--context-length", "--format", "--prompt", "--system",
             "--model", "--max-tokens", "--json"},
    "flower": set(),
    "bench queue": {"--device", "--prompt-tokens", "--output-tokens", "--concurrency", "--json"},
}  # fmt: skip


def one_error(capsys: pytest.CaptureFixture[str], code: str) -> str:
    """The message of the one line on standard error."""
    [line] = capsys.readouterr().err.splitlines()
    found = re.fullmatch(rf"orcd: {code}: (.+)", line)
    assert found, line
    return found[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_flags_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command: click.Command = cli
    for part in name.split():
        assert isinstance(command, click.Group)
        command = command.commands[part]
    assert COMMANDS[name] <= {option for parameter in command.params for option in parameter.opts}
    assert run(cli, [*name.split(), "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"Usage: orcd {name} ")
    assert len(page) > 150


@pytest.mark.parametrize(
    "line",
    [
        "",
        "bench",
        "nonsense",
        "worker",
        "worker --model m.gguf --device tpu",
        "plan --model-file m.gguf",
        "plan in.jsonl",
        "plan in.jsonl --model-file m.gguf --max-tokens 0",
        "worker --model m.gguf --metrics-port -5",
        "bench queue m.gguf --prompt-tokens 0",
        "bench queue m.gguf --concurrency 1,,2",
        "flower --port=many",
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli, shlex.split(line)) == 2
    one_error(capsys, "INVALID_REQUEST")


@pytest.mark.parametrize("line", ["worker --model", "bench queue", "plan in.jsonl --model-file"])
def test_a_model_that_is_not_there_is_named(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tmp_path / "missing.gguf")
    assert run(cli, [*line.split(), model]) == 1
    assert one_error(capsys, "MODEL_LOAD_FAILED").startswith(f"{model}: ")


def test_flower_is_read_only_and_else_gets_its_options_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    exit_codes: list[int] = []
    monkeypatch.setattr(Celery, "start", lambda app, arguments: started.append(arguments))
    monkeypatch.setattr("tasks.__main__._end_process", exit_codes.append)
    run(cli, ["flower", "--port=5556", "--basic-auth=me:secret"])
    assert exit_codes == [0]
    assert started == [["flower", "--read-only", "--port=5556", "--basic-auth=me:secret"]]


def test_a_worker_starts_without_what_only_others_need() -> None:
    code = (
        "import sys, tasks.__main__, tasks.app, tasks.celery_ext.pool, tasks.dispatch.dispatcher;"
        "import worker.text.process.text_service;"
        "print({'numpy', 'kernels.ops', 'cupy_backends', 'flower', 'tornado'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_a_worker_whose_standard_streams_are_closed_works(redis_url: str, shallow_model: Path, client: Client) -> None:
    """As some that start daemons close them: it exited, with 1."""
    options = f"--model {shallow_model} --device cpu --redis {redis_url}"
    command = f"exec {sys.executable} -P -m tasks worker {options} <&- >&- 2>&-"
    with subprocess.Popen(["/bin/sh", "-c", command]) as process:
        try:
            assert client.result(client.submit(prompt="x", max_tokens=2), timeout=60).state == "succeeded"
        finally:
            process.terminate()
        assert process.wait(60) == 0
