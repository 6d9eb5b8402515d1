"""F06: a worker waits for a Redis that is not there yet, and says in one line what is wrong with a URL or password."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from orcd.client import Client
from orcd.errors import RedisUnavailable
from tasks.local.redis_server import RedisServer
from tasks.startup_probe import setup_problems, wait_for_redis
from tests.tasks.worker_process import ROOT, WorkerProcess
from worker.settings import Settings


@pytest.fixture
def guarded(redis_server: RedisServer) -> Iterator[RedisServer]:
    """A server with a password."""
    with closing(redis.Redis.from_url(redis_server.url)) as connection:
        connection.config_set("requirepass", "right")
    yield redis_server


def test_a_worker_waits_for_redis_and_says_so_once(
    redis_server: RedisServer, shallow_model: Path, tmp_path: Path
) -> None:
    redis_server.kill()
    worker = WorkerProcess(redis_server.url, shallow_model, tmp_path)
    worker.wait_for("error")
    time.sleep(3)
    redis_server.start()
    with worker, Client(redis_server.url) as client:
        assert client.result(client.submit(prompt="x", max_tokens=2), timeout=60).state == "succeeded"
        (said,) = worker.events("error")
    assert said["code"] == "REDIS_UNAVAILABLE"
    assert said["message"] == f"cannot reach Redis at {redis_server.url} (ConnectionError); waiting for it"
    assert worker.process.returncode == 0


def test_a_worker_that_waits_for_redis_can_be_stopped(
    redis_server: RedisServer, shallow_model: Path, tmp_path: Path
) -> None:
    redis_server.kill()
    worker = WorkerProcess(redis_server.url, shallow_model, tmp_path)
    worker.wait_for("error")
    worker.process.terminate()
    assert worker.process.wait(60) == 0


def test_a_worker_warns_of_a_redis_that_may_delete_jobs(
    redis_server: RedisServer, shallow_model: Path, tmp_path: Path
) -> None:
    """As hosted ones do by default."""
    with closing(redis.Redis.from_url(redis_server.url)) as connection:
        connection.config_set("maxmemory-policy", "volatile-lru")
    with WorkerProcess(redis_server.url, shallow_model, tmp_path) as worker:
        (said,) = worker.events("redis_setup")
    text = "maxmemory-policy is volatile-lru: it may delete jobs; set maxmemory-policy noeviction"
    assert (said["level"], said["message"]) == ("warning", text)


def test_a_user_who_may_not_ask_for_the_setup_is_told_nothing_of_it(redis_server: RedisServer) -> None:
    with closing(redis.Redis.from_url(redis_server.url)) as connection:
        connection.config_set("maxmemory-policy", "volatile-lru")
        assert len(setup_problems(connection)) == 1
        connection.acl_setuser("modest", enabled=True, passwords=["+x"], categories=["+@all"], commands=["-info"])
        url = redis_server.url.replace("://", "://modest:x@")
        with closing(redis.Redis.from_url(url)) as other:
            assert setup_problems(other) == []


def test_a_redis_that_is_there_is_not_waited_for(redis_url: str) -> None:
    wait_for_redis(Settings(redis_url=redis_url), lambda error: pytest.fail(error.message), lambda: None)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("redis://:wrong@127.0.0.1:{port}/0", "refuses the password"),
        ("redis://127.0.0.1:{port}/0", "refuses the password"),
        ("redis://:right@127.0.0.1:{port}/99", "has no database 99"),
    ],
)
def test_waiting_does_not_help_where_redis_says_no(guarded: RedisServer, place: str, words: str) -> None:
    url = place.format(port=guarded.url.split(":")[-1].removesuffix("/0"))
    with pytest.raises(RedisUnavailable, match=words) as caught:
        wait_for_redis(Settings(redis_url=url), lambda error: pytest.fail(error.message), lambda: None)
    assert "wrong" not in caught.value.message
    assert "right" not in caught.value.message


@pytest.mark.parametrize(
    ("place", "password"),
    [
        ("redis://:{password}@127.0.0.1:{port}/0", "wr0ngsecret"),
        ("redis://:{password}@127.0.0.1:{port}/0", "wr0ng%2Fsecret"),
        ("redis://:{password}@127.0.0.1:{port}/0", "wr0ng/secret"),
        ("redis://user:{password}@127.0.0.1:{port}/0", "wr0ng@secret"),
        ("redis://:{password}@127.0.0.1:{port}/0", "wr0ng#secret"),
        ("redis://:{password}@127.0.0.1:{port}/0", "wr0ng?secret"),
        ("redis://:{password}@127.0.0.1:port/0", "wr0ngsecret"),
        ("redis//:{password}@127.0.0.1:{port}/0", "wr0ngsecret"),
        ("redis://:{password}@127.0.0.1:{port}/first", "wr0ngsecret"),
    ],
)
def test_a_wrong_url_or_password_gives_one_line_without_any_piece_of_it(
    guarded: RedisServer, shallow_model: Path, place: str, password: str
) -> None:
    url = place.format(password=password, port=guarded.url.split(":")[-1].removesuffix("/0"))
    variables = {name: text for name, text in os.environ.items() if not name.startswith("ORCD_")}
    run = subprocess.run(
        [sys.executable, "-P", "-m", "tasks", "worker", "--model", shallow_model, "--device", "cpu", "--redis", url],
        env=variables | {"PYTHONPATH": str(ROOT), "ORCD_LOG_FORMAT": "text"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode in (1, 2), run
    errors = [line for line in run.stderr.splitlines() if " error " in line or line.startswith("orcd:")]
    assert len(errors) == 1, run.stderr
    assert "Traceback" not in run.stderr
    assert "Unrecoverable" not in run.stderr
    for piece in ("wr0ng", "secret"):
        assert piece not in run.stderr + run.stdout
