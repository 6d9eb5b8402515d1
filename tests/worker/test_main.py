import subprocess
import sys
from types import SimpleNamespace

import pytest

from worker.__main__ import main
from worker.errors import InsufficientVram


def test_without_arguments_it_says_in_one_line_how_it_is_meant_to_be_started(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    message = capsys.readouterr().err
    assert "orcd worker" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--fd"], ["--fd", "x"], ["--fd", "-1"], ["sing"], ["--help"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_descriptor_that_is_no_socket_is_wrong_usage():
    done = subprocess.run([sys.executable, "-m", "worker", "--fd", "99"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--fd 99" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_verb_gets_its_arguments_and_gives_the_exit_code(monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setitem(sys.modules, "worker.bench", SimpleNamespace(main=lambda argv: seen.append(argv) or 7))
    assert main(["bench", "engine", "m.gguf"]) == 7
    assert seen == [["engine", "m.gguf"]]


def test_an_error_of_a_verb_is_one_line_with_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(_argv: list[str]) -> int:
        raise InsufficientVram("needs 2 GB\nhas 1 GB")

    monkeypatch.setitem(sys.modules, "worker.logits", SimpleNamespace(main=fail))
    assert main(["logits"]) == 1
    assert capsys.readouterr().err == "orcd: INSUFFICIENT_VRAM: needs 2 GB has 1 GB\n"


def test_starting_needs_neither_celery_nor_redis():
    code = "import sys, worker.__main__, worker.service; print({'celery', 'redis', 'cupy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"
