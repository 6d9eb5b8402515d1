"""What workers are called in Celery's tools."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from socket import gethostname

import pytest

from tasks.observe.node_name import NodeName

PROGRAM = """
import sys
from pathlib import Path
from tasks.observe.node_name import NodeName
name = NodeName("demo", "cuda:0", Path(sys.argv[1]))
print(name.text, flush=True)
sys.stdin.read()
"""


def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A process that holds a name until it ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_name_is_the_same_after_a_restart_and_unlike_those_in_use(tmp_path: Path) -> None:
    host = gethostname()
    first, one = start(tmp_path)
    second, two = start(tmp_path)
    assert (one, two) == (f"demo-cuda0@{host}", f"demo-cuda0-2@{host}")
    first.kill()
    first.communicate()
    third, again = start(tmp_path)
    assert again == one
    for process in (second, third):
        process.communicate("")


@pytest.mark.parametrize(
    ("model", "name"), [("qwen2.5:7b é", "qwen2.5-7b--cpu"), ("../../etc", "..-..-etc-cpu"), ("", "cpu")]
)
def test_a_name_has_no_character_that_means_something_elsewhere(model: str, name: str, tmp_path: Path) -> None:
    assert NodeName(model, "cpu", tmp_path).text == f"{name}@{gethostname()}"


def test_where_no_file_can_be_written_the_name_is_there_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "missing"
    assert NodeName("demo", "cpu", folder).text == NodeName("demo", "cpu", folder).text == f"demo-cpu@{gethostname()}"
