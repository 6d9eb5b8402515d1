"""What workers are called in Celery's tools."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from socket import gethostname

import pytest

from tasks.observe.node_name import NodeName

PROGRAM = """
import os
import sys
from tasks.observe.node_name import NodeName
if os.geteuid() == 0 and sys.argv[2]:
    os.setuid(int(sys.argv[2]))
name = NodeName(sys.argv[1], "cuda:0")
print(name.text, flush=True)
sys.stdin.read()
"""


def start(model: str, user: str = "", **variables: str) -> tuple[subprocess.Popen[str], str]:
    """A process that holds a name until it ends; as root it becomes another ``user`` if there is one."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, model, user],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.fixture
def model() -> str:
    """A model of this test only, as all processes on this machine share the names."""
    return f"demo-{os.getpid()}"


def test_a_name_is_the_same_after_a_restart_and_unlike_those_in_use(model: str) -> None:
    host = gethostname()
    first, one = start(model)
    second, two = start(model)
    assert (one, two) == (f"{model}-cuda0@{host}", f"{model}-cuda0-2@{host}")
    first.kill()
    first.communicate()
    third, again = start(model)
    assert again == one
    for process in (second, third):
        process.communicate("")


def test_workers_of_other_users_and_with_other_temporary_folders_have_other_names(model: str, tmp_path: Path) -> None:
    first, one = start(model)
    second, two = start(model, user="65534", TMPDIR=str(tmp_path))
    for process in (first, second):
        process.communicate("")
    assert (one, two) == (f"{model}-cuda0@{gethostname()}", f"{model}-cuda0-2@{gethostname()}")


@pytest.mark.parametrize(
    ("model", "name"), [("qwen2.5:7b é", "qwen2.5-7b--cpu"), ("../../etc", "..-..-etc-cpu"), ("", "cpu")]
)
def test_a_name_has_no_character_that_means_something_elsewhere(model: str, name: str) -> None:
    held = f"(-[0-9]+)?@{re.escape(gethostname())}"  # a process beside this one may have the first of them
    assert re.fullmatch(re.escape(name) + held, NodeName(model, "cpu").text)


def test_a_long_name_is_held_too() -> None:
    model = f"{os.getpid()}-{'m' * 200}"
    first, second = NodeName(model, "cpu"), NodeName(model, "cpu")
    assert (first.text, second.text) == (f"{model}-cpu@{gethostname()}", f"{model}-cpu-2@{gethostname()}")


def test_no_file_is_needed(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    monkeypatch.chdir(tmp_path)
    assert NodeName(model, "cpu").text == f"{model}-cpu@{gethostname()}"
    assert not list(tmp_path.iterdir())
