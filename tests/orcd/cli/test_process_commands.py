"""Commands that become the process of a worker: arguments, exit codes, signals, and what must not be imported."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from orcd.cli import process_commands
from orcd.cli.process_commands import environment
from tests.orcd.cli.command_line import one_error, run, run_with_program

COMMANDS = {
    "demo": set(),
    "worker": {"--model", "--tokenizer", "--device", "--redis", "--name", "--metrics-port"},
    "flower": set(),
    "inspect": {"--json"},
    "tokenize": {"--jsonl"},
    "render": {"--jsonl"},
    "logits": {"--ids", "--out", "--device"},
    "bench engine": {"--device", "--prompt-tokens", "--output-tokens", "--concurrency", "--json"},
    "bench queue": {"--device", "--prompt-tokens", "--output-tokens", "--concurrency", "--json"},
}  # fmt: skip


def orcd(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What the command does in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "orcd", *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


def only_error(done: subprocess.CompletedProcess[str], code: str) -> str:
    """The message of the one line on standard error."""
    found = re.fullmatch(rf"orcd: {code}: (.+)\n", done.stderr)
    assert found, done.stderr
    return found[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_has_the_flags_that_other_tools_rely_on(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with_program([*name.split(), "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"Usage: orcd {name} ")
    assert set(re.findall(r"--[a-z-]+", page)) >= COMMANDS[name]


WRONG_USAGE = [
    "worker",
    "worker --model m.gguf --device tpu",
    "worker --model m.gguf --metrics-port -5",
    "tokenize m.gguf text --jsonl",
    "render m.gguf",
    "bench queue m.gguf --concurrency 1,,2",
    "bench engine m.gguf --prompt-tokens 0",
    "logits m.gguf",
]


@pytest.mark.parametrize("line", WRONG_USAGE)
def test_wrong_usage_is_one_line_and_exit_code_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with_program(shlex.split(line)) == 2
    one_error(capsys, "INVALID_REQUEST")


def test_the_exit_code_of_a_command_is_that_of_its_program() -> None:
    done = orcd("worker", "--model", "m.gguf", "--device", "tpu")
    assert done.returncode == 2
    only_error(done, "INVALID_REQUEST")


def test_an_unknown_variable_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCD_DEVISE", "cpu")
    assert run_with_program(["worker", "--model", "m.gguf"]) == 2
    assert "ORCD_DEVISE" in one_error(capsys, "INVALID_REQUEST")


@pytest.mark.parametrize("line", ["worker --model", "tokenize --jsonl", "bench queue"])
def test_a_model_that_is_not_there_is_named(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tmp_path / "missing.gguf")
    assert run_with_program([*line.split(), model]) == 1
    assert one_error(capsys, "MODEL_LOAD_FAILED").startswith(f"{model}: ")


@pytest.mark.parametrize("name", ["worker", "flower", "inspect", "bench queue"])
def test_a_command_whose_packages_are_missing_names_what_to_install(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = process_commands.find_spec
    missing = "flower" if name == "flower" else "tokenizers"
    monkeypatch.setattr(process_commands, "find_spec", lambda name: None if name == missing else find(name))
    assert run(name.split()) == 2
    message = one_error(capsys, "INVALID_REQUEST")
    extra = {"flower": "flower", "bench queue": "local"}.get(name, "worker")
    assert f"({missing})" in message
    assert message.endswith(f"pip install 'orcd[{extra}]'")


def test_an_entry_of_pythonpath_that_holds_a_module_named_like_ours_is_dropped(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("tasks_file", "worker_package", "innocent", "kernels_folder")}
    for folder in folders.values():
        folder.mkdir()
    (folders["tasks_file"] / "tasks.py").touch()
    (folders["worker_package"] / "worker").mkdir()
    (folders["worker_package"] / "worker" / "__init__.py").touch()
    (folders["kernels_folder"] / "kernels").mkdir()  # no package: it hides nothing
    ours = str(Path(process_commands.__file__).parents[2])
    path = os.pathsep.join([*map(str, folders.values()), ours])
    kept = os.pathsep.join([str(folders["innocent"]), str(folders["kernels_folder"]), ours])
    assert environment({"PYTHONPATH": path, "HOME": "/"}) == {"PYTHONPATH": kept, "HOME": "/"}
    assert environment({"HOME": "/"}) == {"HOME": "/"}


def test_the_command_is_the_process_itself(demo_model: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "orcd", "tokenize", str(demo_model), "--jsonl"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b'{"text": "a"}\n')
        process.stdin.flush()
        assert process.stdout.readline()
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        assert command[1:5] == [b"-P", b"-m", b"worker", b"tokenize"]
        # Python looks for signals no more before the read that waits: one that comes in between is heard with the next.
        for _ in range(12):
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
                break
        assert process.returncode == 130


def test_a_worker_that_cannot_start_exits_with_one(redis_url: str, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF")
    done = orcd("worker", "--model", str(damaged), "--device", "cpu", "--redis", redis_url)
    assert done.returncode == 1
    [error] = [event for line in done.stderr.splitlines() if (event := json.loads(line))["event"] == "error"]
    assert error["code"] == "MODEL_LOAD_FAILED"


@pytest.mark.parametrize("url", ["http://canary", "redis://h:canary", "redis://:can/ary@h:70000", "canary"])
@pytest.mark.parametrize("verb", ["worker", "flower"])
def test_a_url_that_cannot_be_is_one_line_without_the_password(
    verb: str, url: str, demo_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """F06: it was a traceback, or ``Unrecoverable error: %r``, with a piece of the password."""
    for name, text in {"ORCD_REDIS_URL": url, "ORCD_MODEL": str(demo_model), "ORCD_DEVICE": "cpu"}.items():
        monkeypatch.setenv(name, text)
    assert run_with_program([verb]) == 2
    message = one_error(capsys, "INVALID_REQUEST")
    assert not any(piece in message for piece in ("canary", "can/", "ary@"))


@pytest.mark.parametrize(
    ("verb", "lacks"),
    [("worker", "CuPy"), ("bench engine", "CuPy"), ("bench queue", "a device"), ("logits", "a device")],
)
def test_without_a_gpu_one_line_says_how_to_install_one_or_choose_the_cpu(
    verb: str, lacks: str, redis_url: str, demo_model: Path, tmp_path: Path
) -> None:
    missing = "cupy_backends"
    (tmp_path / f"{missing}.py").write_text(
        f"raise ModuleNotFoundError(\"No module named '{missing}'\", name='{missing}')"
    )
    (tmp_path / "ids.json").write_text("[[1, 2]]")
    options = {
        "worker": ["--model", str(demo_model), "--redis", redis_url],
        "logits": [str(demo_model), "--ids", str(tmp_path / "ids.json"), "--out", str(tmp_path / "out.npz")],
    }
    hidden = {"PYTHONPATH": str(tmp_path)} if lacks == "CuPy" else {"CUDA_VISIBLE_DEVICES": ""}
    done = orcd(*verb.split(), *options.get(verb, [str(demo_model)]), "--device", "cuda:0", **hidden)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if "MODEL_LOAD_FAILED" in line]
    assert re.search("no CUDA device here.*; install|Python package cupy is missing; install", line)
    assert "--device cpu" in line
    if verb == "worker":  # its log, of which each line is an event
        assert all(json.loads(line) for line in done.stderr.splitlines())
    else:
        assert done.stderr.count("\n") == 1


def test_a_wrong_file_of_ids_is_the_caller_s_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    line = ["logits", str(tmp_path / "m.gguf"), "--ids", "i.json", "--out", "o.npz", "--device", "cpu"]
    assert run_with_program(line) == 2
    one_error(capsys, "INVALID_REQUEST")
    assert time.monotonic() - started < 20
