"""Tests that are run in several processes end as they would in one, and a process that ends early is told of."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import wait_until

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
CONFTEST = """
import os, pytest

@pytest.fixture(scope="session")
def of_the_session():
    with open("made", "a") as file:
        file.write(f"{os.getpid()}\\n")
    yield os.getpid()
    with open("ended", "a") as file:
        file.write(f"{os.getpid()}\\n")

@pytest.fixture(scope="module")
def of_the_file():
    return object()

SEEN = []
"""
FILE = """
import os
from conftest import SEEN

def test_begins(of_the_session, of_the_file):
    assert os.getpid() == of_the_session
    SEEN.append(of_the_file)

def test_goes_on_in_the_same_process(of_the_file):
    assert SEEN[-1] is of_the_file
"""
OUTCOMES = """
import sys, warnings
import pytest

def test_says_something_and_fails(tmp_path):
    print("to standard output")
    print("to standard error", file=sys.stderr)
    (tmp_path / "file").write_text("x")
    assert 1 + 1 == 3

@pytest.mark.skip(reason="a reason")
def test_is_skipped(): pass

@pytest.mark.xfail(reason="known")
def test_fails_as_expected(): assert False

@pytest.fixture
def broken(): raise KeyError("a fixture")

def test_cannot_begin(broken): pass

def test_is_good(): pass
"""


def run(folder: Path, *options: str, **files: str) -> subprocess.CompletedProcess[str]:
    """Run these files of tests in a folder of their own."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]")
    return subprocess.run(
        command(*options), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )


def command(*options: str) -> list[str]:
    plugins = ["--disable-plugin-autoload", "-p", "tests.forked_run", "-p", "no:cacheprovider"]
    return [sys.executable, "-m", "pytest", "-q", *plugins, *options]


def test_what_belongs_to_a_file_or_the_session_is_made_once_in_each_process(tmp_path: Path) -> None:
    done = run(tmp_path, "-n", "3", conftest=CONFTEST, **{f"test_{number}": FILE for number in range(8)})
    assert done.returncode == 0, done.stdout
    assert "16 passed" in done.stdout
    made = (tmp_path / "made").read_text().split()
    assert len(made) == len(set(made)) == 3
    assert sorted((tmp_path / "ended").read_text().split()) == sorted(made)


def test_the_parts_of_a_long_file_are_run_in_several_processes(tmp_path: Path) -> None:
    notes = "import os\nimport pytest\n@pytest.mark.parametrize('n', range(40))\ndef test_notes(n):\n"
    notes += "    open('seen', 'a').write(f'{os.getpid()} {n}\\n')\n"
    for options, num_processes in (["--dist", "load"], 3), ([], 1):
        done = run(tmp_path, "-n", "3", *options, test_a=notes, test_b="", test_c="")
        assert "40 passed" in done.stdout
        seen = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
        (tmp_path / "seen").unlink()
        assert len({pid for pid, _ in seen}) == num_processes
        assert sorted(int(number) for _, number in seen) == list(range(40))


def told(text: str) -> list[str]:
    """What was said of each test, without times, ids of processes and folders."""
    return sorted(re.sub(r"in [\d.]+s|pytest-\d+/(process\d+/)?|0x\w+", "", line) for line in text.splitlines() if line)


def test_reports_are_those_of_one_process(tmp_path: Path) -> None:
    alone = run(tmp_path, "-rA", test_outcomes=OUTCOMES)
    forked = run(tmp_path, "-rA", "-n", "2", test_outcomes=OUTCOMES)
    assert "to standard error" in forked.stdout
    assert "a reason" in forked.stdout
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed, 1 error" in forked.stdout
    assert told(forked.stdout) == told(alone.stdout)
    assert (forked.returncode, forked.stderr) == (alone.returncode, alone.stderr) == (1, "")


@pytest.mark.parametrize(("death", "code"), [("os.kill(os.getpid(), 9)", -9), ("os._exit(0)", 0), ("os._exit(3)", 3)])
def test_a_test_whose_process_ends_has_failed_and_the_others_run(tmp_path: Path, death: str, code: int) -> None:
    deadly = f"import os\ndef test_good(): pass\ndef test_deadly(): {death}\ndef test_behind_it(): pass\n"
    done = run(tmp_path, "-n", "2", test_a=deadly, test_b=deadly, conftest=CONFTEST, test_c=FILE)
    assert "2 failed, 6 passed" in done.stdout
    assert f"The process that ran this ended with {code}." in done.stdout
    assert "FAILED test_a.py::test_deadly" in done.stdout
    assert done.returncode == 1


def test_what_fails_when_a_process_leaves_fails_the_run(tmp_path: Path) -> None:
    conftest = CONFTEST.replace('open("ended", "a")', "0 / 0")
    done = run(tmp_path, "-n", "2", conftest=conftest, test_a=FILE)
    assert "ZeroDivisionError" in done.stdout
    assert done.returncode == 1


def test_no_more_fail_than_may(tmp_path: Path) -> None:
    done = run(tmp_path, "-x", "-n", "1", test_a="def test_bad(): assert 0\ndef test_next(): assert 0\n")
    assert "1 failed" in done.stdout
    assert "stopping after 1 failures" in done.stdout


def test_a_file_that_cannot_be_collected_ends_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, "-n", "2", test_a="import nothing_of_this_name", test_b="def test_good(): pass")
    assert "nothing_of_this_name" in done.stdout
    assert done.returncode == 2


def test_an_interrupted_run_leaves_no_process(tmp_path: Path) -> None:
    waits = "import os, time\ndef test_waits():\n    open(str(os.getpid()), 'w').close()\n    time.sleep(600)\n"
    for name in ("test_a", "test_b"):
        (tmp_path / f"{name}.py").write_text(waits)
    run = subprocess.Popen(command("-n", "2"), cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: len([path for path in tmp_path.iterdir() if path.name.isdecimal()]) == 2)
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=60)
    assert "KeyboardInterrupt" in output
    for path in tmp_path.iterdir():
        if path.name.isdecimal():
            with pytest.raises(ProcessLookupError):
                os.kill(int(path.name), 0)
