"""Flower's options, and the queues that it lists. Its pages are read by test_flower_program_pages.py."""

from __future__ import annotations

import dbm
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import flower.events
import pytest
import redis
from celery import Celery
from flower.views import BaseHandler
from redis.backoff import NoBackoff
from redis.retry import Retry

from orcd.errors import InvalidRequest
from tasks.flower_program import MOST_PAUSE_S, FlowerProgram, listen_again_soon, show_all_queues
from tasks.local import redis_server
from tests.conftest import wait_until
from worker.settings import Settings

SETTINGS = Settings(device="cpu")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The command lines that Celery is started with."""
    found: list[list[str]] = []
    monkeypatch.setattr(Celery, "start", lambda app, arguments: found.append(arguments))
    monkeypatch.setattr(BaseHandler, "get_active_queue_names", BaseHandler.get_active_queue_names)
    monkeypatch.chdir(tmp_path)
    return found


def test_a_password_is_made_up_for_a_terminal(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert FlowerProgram(SETTINGS, ["--port=5556"], {}).run() == 0
    [[flower, read_only, login, port]] = started
    assert (flower, read_only, port) == ("flower", "--read-only", "--port=5556")
    found = re.fullmatch(r"--basic-auth=orcd:(\S{16})", login)
    assert found
    assert found[1] in capsys.readouterr().err


def test_elsewhere_it_asks_for_one_as_it_would_end_in_a_log(started: list[list[str]]) -> None:
    with pytest.raises(InvalidRequest, match="FLOWER_BASIC_AUTH"):
        FlowerProgram(SETTINGS, [], {}).run()
    assert started == []


@pytest.mark.parametrize(
    ("arguments", "environment", "problem"),
    [
        (["--port=99999"], {"FLOWER_BASIC_AUTH": "a:b"}, "port: must be at most 65535"),
        ([], {"FLOWER_BASIC_AUTH": "a:b", "FLOWER_PORT": "99999"}, "port: must be at most 65535"),
        (["--basic-auth=hidden"], {}, "basic_auth: must be USER:PASSWORD"),
        ([], {"FLOWER_BASIC_AUTH": "a:b,hidden"}, "basic_auth: must be USER:PASSWORD"),
    ],
)
def test_values_with_which_nobody_would_get_in_are_refused_and_no_password_is_told(
    started: list[list[str]], arguments: list[str], environment: dict[str, str], problem: str
) -> None:
    """The port was taken modulo 65536, and a login without a colon was one that nobody can give."""
    with pytest.raises(InvalidRequest, match=problem) as caught:
        FlowerProgram(SETTINGS, arguments, environment).run()
    assert started == []
    assert "hidden" not in caught.value.message


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["--basic-auth=a:b"], {}, ["--read-only"]),
        (["--read-only=false", "--basic_auth=a:b"], {}, []),
        ([], {"FLOWER_BASIC_AUTH": "a:b", "FLOWER_READ_ONLY": "false"}, []),
        (["--auth=.*@example"], {}, ["--read-only"]),
        (["--conf=mine.py"], {}, []),
    ],
)
def test_what_was_said_is_left_as_it_is(
    started: list[list[str]], arguments: list[str], environment: dict[str, str], expected: list[str]
) -> None:
    assert FlowerProgram(SETTINGS, arguments, environment).run() == 0
    assert started == [["flower", *expected, *arguments]]


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("--prot=5556", r"there is no option --prot; did you mean --port\?"),
        ("--xyzzy", "there is no option --xyzzy; docs/flower.md says where they are listed"),
        ("5556", "argument 2 is no option; they are written --NAME=VALUE"),
    ],
)
def test_an_option_that_flower_does_not_know_is_told(started: list[list[str]], argument: str, complaint: str) -> None:
    """Flower itself passes over it."""
    with pytest.raises(InvalidRequest, match=complaint):
        FlowerProgram(SETTINGS, ["--basic-auth=a:b", argument], {}).run()
    assert started == []


def test_a_second_sigterm_ends_it_at_once(started: list[list[str]]) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # Flower has a handler, which exits
    try:
        FlowerProgram(SETTINGS, ["--basic-auth=a:b"], {}).run()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


TOLD_TO_STOP_EARLY = """
import contextlib, os, signal, sys

if "flower" in sys.orig_argv and "tasks" in sys.orig_argv:
    import flower.command

    def stop_early(*_):
        with contextlib.suppress(BaseException):  # as finalizers do, and some libraries
            os.kill(os.getpid(), signal.SIGTERM)

    flower.command.print_banner = stop_early
"""


def test_a_sigterm_is_heard_also_where_exceptions_are_passed_over(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(TOLD_TO_STOP_EARLY)
    variables = {"ORCD_REDIS_URL": redis_url, "FLOWER_BASIC_AUTH": "a:b", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "orcd", "flower", "--address=127.0.0.1", f"--port={redis_server.free_port()}"]
    done = subprocess.run(command, env=os.environ | variables, cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


def test_a_file_of_options_says_all(started: list[list[str]]) -> None:
    Path("flowerconfig.py").write_text("basic_auth = ['a:b']")
    assert FlowerProgram(SETTINGS, [], {}).run() == 0
    assert started == [["flower"]]


def test_queues_that_nobody_serves_are_among_the_names(
    started: list[list[str]], connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BaseHandler, "get_active_queue_names", lambda _: ["orcd", "orcd.demo"])
    show_all_queues(connection, "")
    for name in ("orcd.foreign:7", "orcd.foreign", "orcdish", "celery", "orcd:3"):
        connection.lpush(name, "x")
    connection.set("orcd.a-string", "x")
    handler = Mock(spec=BaseHandler)
    assert BaseHandler.get_active_queue_names(handler) == ["orcd", "orcd.demo", "orcd.foreign"]


def test_without_redis_flower_lists_those_of_workers(started: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BaseHandler, "get_active_queue_names", lambda _: ["orcd"])
    with redis.Redis(port=1, retry=Retry(NoBackoff(), 0)) as nobody:
        show_all_queues(nobody, "")
        assert BaseHandler.get_active_queue_names(Mock(spec=BaseHandler)) == ["orcd"]


def test_flower_listens_again_soon_after_redis_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower.events, "time", time)  # as it was, afterwards
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    listen_again_soon()
    flower.events.time.sleep(2)
    flower.events.time.sleep(4096)
    assert pauses == [2, MOST_PAUSE_S]


def test_flower_exits_though_redis_is_away(tmp_path: Path) -> None:
    """A thread of it waited for Redis without end, and the process for that thread."""
    log_path = tmp_path / "log"
    with redis_server.RedisServer() as server, log_path.open("w") as log:
        command = [sys.executable, "-P", "-m", "tasks", "flower", f"--port={redis_server.free_port()}"]
        variables = os.environ | {"ORCD_REDIS_URL": server.url, "FLOWER_BASIC_AUTH": "a:b"}
        with subprocess.Popen(command, env=variables, stderr=log, cwd=Path(__file__).parents[2]) as flower_process:
            wait_until(lambda: "Connected to" in log_path.read_text())
            server.kill()
            wait_until(lambda: "Failed to capture events" in log_path.read_text())
            time.sleep(6)  # it asks workers for their events every five seconds
            flower_process.terminate()
            assert flower_process.wait(30) == 0


def test_what_flower_is_to_keep_is_there_after_its_end(redis_url: str, tmp_path: Path) -> None:
    log_path, kept = tmp_path / "log", tmp_path / "kept"
    options = [f"--port={redis_server.free_port()}", "--persistent=True", f"--db={kept}"]
    command = [sys.executable, "-P", "-m", "tasks", "flower", *options]
    variables = os.environ | {"ORCD_REDIS_URL": redis_url, "FLOWER_BASIC_AUTH": "a:b"}
    with (
        log_path.open("w") as log,
        subprocess.Popen(command, env=variables, stderr=log, cwd=Path(__file__).parents[2]) as flower_process,
    ):
        wait_until(lambda: "Connected to" in log_path.read_text())
        flower_process.terminate()
        assert flower_process.wait(30) == 0
    with dbm.open(str(kept)) as state:
        assert b"events" in state
