"""The commands about a model file, as one command line."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import click
import pytest

from orcd.errors import InsufficientVram
from tests.orcd.cli.command_line import one_error
from worker.commands.main import cli, run

COMMANDS = {
    "inspect": {"--device", "--json"},
    "tokenize": {"--jsonl"},
    "render": {"--jsonl"},
    "logits": {"--ids", "--out", "--device"},
    "bench engine": {"--device", "--prompt-tokens", "--output-tokens", "--concurrency", "--json"},
}


def command(name: str) -> click.Command:
    found: click.Command = cli
    for part in name.split():
        assert isinstance(found, click.Group)
        found = found.commands[part]
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_flags_that_other_tools_rely_on(name: str) -> None:
    assert COMMANDS[name] <= {option for parameter in command(name).params for option in parameter.opts}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_explains_itself_under_the_name_that_people_call(
    name: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*name.split(), option]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"Usage: orcd {name} ")
    assert len(page) > 150


def test_help_names_every_command_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    page = capsys.readouterr().out
    for name in {name.split()[0] for name in COMMANDS}:
        assert re.search(rf"^  {name} +[A-Z].*[^.]\.$", page, re.MULTILINE), name


def test_help_waits_for_no_numbers() -> None:
    code = (
        "import sys; from worker.commands.main import run; run(['bench', 'engine', '--help']);"
        "print({'numpy', 'kernels', 'tokenizers', 'gguf'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "bench",
        "nonsense",
        "--nonsense",
        "--fd x",
        "bench queue m.gguf",
        "inspect",
        "tokenize m.gguf",
        "tokenize m.gguf text --jsonl",
        "render m.gguf",
        "render m.gguf missing.json",
        "logits m.gguf",
        "logits m.gguf --ids missing.json --out x.npz --device cpu",
        "bench engine",
        "bench engine m.gguf --device",
        "bench engine m.gguf --device tpu",
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shlex.split(line)) == 2
    one_error(capsys, "INVALID_REQUEST")


def test_wrong_usage_names_the_page_that_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "engine", "m.gguf", "--prompt-tokens=0"]) == 2
    assert one_error(capsys, "INVALID_REQUEST").endswith(" (see orcd bench engine --help)")


@pytest.mark.parametrize("line", ["inspect", "tokenize --jsonl", "render --jsonl", "bench engine --device cpu"])
def test_a_model_that_is_not_there_is_named(
    line: str, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tmp_path_factory.getbasetemp() / "missing.gguf")
    assert run([*line.split(), model]) == 1
    assert one_error(capsys, "MODEL_LOAD_FAILED").startswith(f"{model}: ")


def test_an_error_of_a_command_is_one_line_with_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_arguments: object) -> None:
        raise InsufficientVram("needs 2 GB\nhas 1 GB")

    monkeypatch.setattr("worker.commands.logits.write_logits", fail)
    assert run(["logits", "m.gguf", "--ids", "i.json", "--out", "o.npz"]) == 1
    assert capsys.readouterr().err == "orcd: INSUFFICIENT_VRAM: needs 2 GB has 1 GB\n"


def test_what_is_not_utf_8_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("worker.commands.logits.write_logits", lambda *_: "a secret \udce9".encode())
    assert run(["logits", "m.gguf", "--ids", "i.json", "--out", "o.npz"]) == 2
    assert one_error(capsys, "INVALID_REQUEST").endswith(" is not valid UTF-8")


def test_an_interrupted_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("worker.commands.inspect.inspect_model", interrupt)
    assert run(["inspect", "m.gguf"]) == 130
    assert one_error(capsys, "CANCELLED") == "interrupted"
