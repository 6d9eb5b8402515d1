"""What the README and the documentation say exists, and their examples in Python run."""

from __future__ import annotations

import ast
import io
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import redis

import orcd.gateway.settings
import orcd.settings
import worker.settings
from orcd.cli import queue_commands
from orcd.cli.main import MODULES
from orcd.client import Client
from orcd.gateway.settings import GatewaySettings
from orcd.settings import NAMES, PREFIX, ClientSettings
from orcd.store.schema import job_key
from tasks.local.redis_server import RedisServer
from tests.conftest import DEMO_MODEL, emptied
from tests.orcd.cli.command_line import run_with_program
from tests.orcd.gateway.gateway_process import GatewayProcess
from tests.pages import PATHS
from tests.pages import TEXTS as PAGES
from worker.settings import Settings

ROOT = Path(__file__).parents[1]
VERBS = {*itertools.chain(*MODULES.values()), "engine", "queue", *queue_commands.dead.commands}


@cache
def flags_of(verb: tuple[str, ...]) -> set[str]:
    """The flags that a command's help names."""
    with redirect_stdout(io.StringIO()) as page:
        assert run_with_program([*verb, "--help"]) == 0
    return set(re.findall(r"--[a-z-]+", page.getvalue()))


def blocks(language: str, text: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def variable_rows(kind: type, module: ModuleType, verb: str) -> Iterator[str]:
    """The table of variables as the docstrings of a kind of settings have it."""
    meanings: dict[str, str] = {}
    body = [
        node
        for each in (orcd.settings, module)
        for found in ast.parse(Path(str(each.__file__)).read_text(encoding="utf-8")).body
        if isinstance(found, ast.ClassDef)
        for node in found.body
    ]
    for node, following in pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = following.value if isinstance(following, ast.Expr) else None
            meanings[node.target.id] = str(text.value) if isinstance(text, ast.Constant) else ""
    flags = flags_of((verb,))
    for field in fields(kind):
        shorter = {"redis_url": "--redis", "drain_timeout_s": "--drain-timeout"}
        flag = shorter.get(field.name, "--" + field.name.replace("_", "-"))
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        meaning = " ".join(meanings[field.name].replace("``", "`").split())
        yield "| {} | {} | {} | {} |".format(
            f"`{PREFIX}{field.name.upper()}`",
            f"`{flag}`" if flag in flags else "",
            f"`{default}`" if default != "" else "",
            meaning,
        )


def test_the_table_of_variables_is_that_of_the_settings() -> None:
    rows = list(variable_rows(Settings, worker.settings, "worker"))
    table = [line for line in PAGES["settings.md"].splitlines() if line.startswith(f"| `{PREFIX}")]
    assert table == rows, "docs/settings.md should have:\n" + "\n".join(rows)


def test_the_gateways_table_of_variables_has_its_own_settings() -> None:
    everybodys = {f"`{PREFIX}{field.name.upper()}`" for field in fields(ClientSettings)}
    all_rows = variable_rows(GatewaySettings, orcd.gateway.settings, "gateway")
    rows = [row for row in all_rows if row.split(" | ")[0].removeprefix("| ") not in everybodys]
    table = [line for line in PAGES["gateway.md"].splitlines() if line.startswith(f"| `{PREFIX}")]
    assert table == rows, "docs/gateway.md should have:\n" + "\n".join(rows)


def test_the_names_that_clients_know_are_those_of_all_settings() -> None:
    assert {field.name for kind in (Settings, GatewaySettings) for field in fields(kind)} == NAMES


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
        verb = tuple(itertools.takewhile(lambda word: word in VERBS, words[1:3]))
        assert verb, words
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= flags_of(verb), words


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words[1] for words in command_lines(PAGES[page]) if words[:1] == ["make"]}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES)
def test_every_link_into_the_project_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)[^)]*\)", PAGES[page]):
        assert (PATHS[page].parent / target).exists(), target


def test_the_first_paragraph_says_what_it_is_in_three_sentences() -> None:
    paragraph = PAGES["README.md"].split("\n\n")[1]
    assert len(re.findall(r"\.(?:\s|$)", paragraph)) == 3


@pytest.fixture(scope="module")
def users_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as users of Celery have it, with modules named like ours that must never be imported."""
    folder = tmp_path_factory.mktemp("application")
    (folder / "tasks.py").write_text("raise AssertionError('imported tasks of the user')")
    (folder / "kernels.py").write_text("raise AssertionError('imported kernels of the user')")
    (folder / "worker").mkdir()
    (folder / "worker" / "__init__.py").write_text("raise AssertionError('imported worker of the user')")
    return folder


@pytest.fixture(scope="module")
def serving(shared_redis: RedisServer, users_folder: Path, shallow_chat_model: Path) -> Iterator[str]:
    """The URL of a Redis with an ``orcd worker`` on it that was started in the user's folder."""
    command = [sys.executable, "-m", "orcd", "worker", "--model", str(shallow_chat_model), "--device", "cpu"]
    url = emptied(shared_redis)
    environment = os.environ | {"ORCD_REDIS_URL": url, "PYTHONPATH": str(users_folder)}
    with subprocess.Popen(command, cwd=users_folder, env=environment, stderr=subprocess.DEVNULL) as worker:
        with Client(url) as client:
            end = time.monotonic() + 60
            while not any(worker.state == "ready" for worker in client.workers()):
                assert worker.poll() is None, "the worker ended"
                assert time.monotonic() < end, "the worker is not ready"
                time.sleep(0.1)
        yield url
        worker.terminate()
        assert worker.wait(60) == 0


def run_example(command: list[str], redis_url: str, folder: Path, **variables: str) -> str:
    """What an example prints in the user's folder."""
    environment = os.environ | {"ORCD_REDIS_URL": redis_url} | variables
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def repeatable(example: str) -> str:
    """With the same job ids each time, which give the seeds: an answer that is random may be blank."""
    draw = f"random.Random({zlib.crc32(example.encode())}).getrandbits"
    return f"import random, uuid\ndraw = {draw}\nuuid.uuid4 = lambda: uuid.UUID(int=draw(128), version=4)\n{example}"


def test_the_python_examples_run_beside_modules_named_like_ours(serving: str, users_folder: Path) -> None:
    """In the folder that has them, which is on the path as that and by the variable."""
    examples = blocks("python", PAGES["enqueue.md"])
    assert len(examples) == 4
    for example in map(repeatable, examples):
        variables = {"PYTHONPATH": str(users_folder)}
        assert run_example([sys.executable, "-W", "error", "-c", example], serving, users_folder, **variables).strip()


@pytest.mark.parametrize("page", ["index.md", "openai.md", "python.md"])
def test_the_python_examples_of_the_documentation_run(serving: str, users_folder: Path, page: str) -> None:
    for example in map(repeatable, blocks("python", PAGES[page])):
        assert run_example([sys.executable, "-W", "error", "-c", example], serving, users_folder).strip()


def test_the_gateways_examples_in_python_run(serving: str, users_folder: Path) -> None:
    examples = "\n".join(blocks("python", PAGES["gateway.md"]))
    with GatewayProcess(serving) as gateway:
        ours = examples.replace("http://127.0.0.1:8000/v1", gateway.url).replace("MODEL", DEMO_MODEL.stem)
        said = run_example([sys.executable, "-c", f"{ours}\nprint(answer, last)"], serving, users_folder)
    assert "finish_reason" in said


def test_every_page_with_examples_in_python_has_them_run() -> None:
    pages = {name for name, text in PAGES.items() if blocks("python", text)}
    assert pages == {"enqueue.md", "gateway.md", "index.md", "openai.md", "python.md"}


@pytest.fixture
def redis_cli(tmp_path: Path) -> str:
    """A PATH with a ``redis-cli``: the real one where there is one, else what the example needs of it."""
    if shutil.which("redis-cli") is None:
        program = tmp_path / "redis-cli"
        send = "import redis, sys; redis.Redis.from_url(sys.argv[2]).execute_command(*sys.argv[3:])"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{send}" "$@"\n')
        program.chmod(0o755)
    return f"{tmp_path}{os.pathsep}{os.environ['PATH']}"


def test_the_example_without_python_enqueues_a_job_that_runs(serving: str, users_folder: Path, redis_cli: str) -> None:
    [example] = [block for block in blocks("sh", PAGES["enqueue.md"]) if "LPUSH" in block]
    output = run_example(["bash", "-euc", example + '\necho "id=$id"'], serving, users_folder, PATH=redis_cli)
    job_id = output.rpartition("id=")[2].strip()
    with Client(serving) as client, redis.Redis.from_url(serving) as connection:
        end = time.monotonic() + 60
        while not connection.exists(job_key(job_id)):  # the worker writes the record when the message arrives
            assert time.monotonic() < end
            time.sleep(0.02)
        assert client.result(job_id, timeout=60).state == "succeeded"
