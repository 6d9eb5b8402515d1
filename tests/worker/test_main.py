import os
import subprocess
import sys

import pytest

from worker.__main__ import main


def test_without_arguments_it_says_in_one_line_how_it_is_meant_to_be_started(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    message = capsys.readouterr().err
    assert "orcd worker" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [["--fd"], ["--fd", "x"], ["--fd", "-1"], ["--in-flight-fd", "3"], ["--in-flight-fd", "x", "--fd", "3"], ["sing"]],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    assert "tokenize" in capsys.readouterr().out


def test_a_descriptor_that_is_no_socket_is_wrong_usage():
    done = subprocess.run([sys.executable, "-m", "worker", "--fd", "99"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--fd 99" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_command_gets_its_arguments_and_gives_the_exit_code(monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr("worker.commands.main.run", lambda arguments: seen.append(arguments) or 7)
    assert main(["bench", "engine", "m.gguf"]) == 7
    assert seen == [["bench", "engine", "m.gguf"]]


def test_a_core_is_left_free_before_numpy_is_imported():
    code = (
        "import os, sys; from worker.__main__ import main; assert 'numpy' not in sys.modules; main(['--help']);"
        "assert 'numpy' not in sys.modules; print(os.environ['OPENBLAS_NUM_THREADS'], file=sys.stderr)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stderr) == max(1, (os.cpu_count() or 2) - 1)


@pytest.mark.parametrize(("device", "num_threads"), [("cpu", max(1, (os.cpu_count() or 2) - 1)), ("cuda:0", 1)])
def test_an_engine_on_a_gpu_starts_no_threads_that_multiply_matrices(device: str, num_threads: int):
    code = (
        "import os, socket, sys; import worker.__main__ as program; assert 'numpy' not in sys.modules;"
        "program.begin_context = lambda device: None; import worker.service;"
        "worker.service.serve = lambda *_: print(os.environ['OPENBLAS_NUM_THREADS']) or 0;"
        "program.main(['--fd', str(socket.socketpair()[0].detach())])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    environment["ORCD_DEVICE"] = device
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == num_threads


def test_an_engine_does_not_wait_long_for_the_thread_that_compiles_grammars():
    code = (
        "import socket, sys, worker.service; from worker.__main__ import main;"
        "worker.service.serve = lambda *_: print(sys.getswitchinterval()) or 0;"
        "main(['--fd', str(socket.socketpair()[0].detach())])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 0.0005


def test_starting_needs_no_queue_no_vocabulary_and_no_gpu():
    names = {"celery", "redis", "cupy_backends", "tokenizers", "llguidance"}
    code = f"import sys, worker.__main__, worker.service; print({names} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"


def test_an_engine_on_the_cpu_imports_nothing_of_cudas():
    code = (
        "import sys, worker.service; from kernels.devices.open import open_device; open_device('cpu');"
        "print([name for name in sys.modules if name.startswith(('kernels.ops', 'kernels.runtime.driver',"
        " 'worker.engine.cuda', 'cuda', 'cupy_backends'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
