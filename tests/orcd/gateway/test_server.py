from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import redis

from orcd.gateway.server import listen
from orcd.gateway.settings import GatewaySettings
from orcd.store import schema
from tests.conftest import wait_until
from tests.orcd.gateway.gateway_process import GatewayProcess
from tests.orcd.job_writer import MakeStore, claimed

SIGNALLED_EARLY = """
import os, time, uvicorn
from orcd.cli.main import main

uvicorn.Server.run = lambda server, sockets: (os.kill(os.getpid(), int(os.environ["NUMBER"])), time.sleep(1000))
main()
"""
TOLD_BY_ASYNCIO = """
import asyncio, logging, socket, uvicorn
from orcd.cli.main import main

async def write_to_one_that_is_gone():
    here, there = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=here)
    there.close()
    for _ in range(10):
        writer.write(b"x")

def run(server, sockets):
    asyncio.run(write_to_one_that_is_gone())
    logging.getLogger("asyncio").warning("something else")

uvicorn.Server.run = run
main()
"""
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_gateway_says_where_it_is_and_stops_in_order(redis_url: str, number: signal.Signals) -> None:
    with GatewayProcess(redis_url) as gateway:
        assert httpx.get(f"{gateway.url}/models").status_code == 200
        gateway.process.send_signal(number)
        assert gateway.process.wait(60) == 0
        assert gateway.errors == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_gateway_that_is_told_to_stop_before_uvicorn_listens_leaves(number: signal.Signals) -> None:
    command = [sys.executable, "-c", SIGNALLED_EARLY, "gateway", "--port", "0"]
    done = subprocess.run(command, env=os.environ | {"NUMBER": str(int(number))}, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_callers_that_go_away_during_a_stream_are_not_told_in_the_log() -> None:
    command = [sys.executable, "-c", TOLD_BY_ASYNCIO, "gateway", "--port", "0"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"something else\n")


def test_an_answer_on_its_way_is_finished_before_the_gateway_stops(
    redis_url: str, connection: redis.Redis, make_store: MakeStore, served_model: str
) -> None:
    with GatewayProcess(redis_url) as gateway, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(httpx.post, f"{gateway.url}/chat/completions", json=CHAT, timeout=60)
        wait_until(lambda: connection.zcard(schema.QUEUED))
        (job_id,) = connection.zrange(schema.QUEUED, 0, -1)
        gateway.process.terminate()
        writer = claimed(make_store(), job_id.decode())
        writer.start()
        writer.tokens(3)
        writer.end()
        assert answer.result().json()["choices"][0]["message"]["content"] == " 1 2 3"
        assert gateway.process.wait(60) == 0


def test_answers_that_take_longer_end_in_words_when_the_gateway_stops(
    redis_url: str, connection: redis.Redis, make_store: MakeStore, served_model: str
) -> None:
    program = ["-c", "from orcd.cli.main import main; from orcd.gateway import server; server.STOP_S = 0.3; main()"]
    with GatewayProcess(redis_url, program=program) as gateway, ThreadPoolExecutor(3) as threads:

        def post(path: str, body: Mapping[str, Any]) -> Future[httpx.Response]:
            return threads.submit(httpx.post, f"{gateway.url}/{path}", json=body, timeout=60)

        whole = post("chat/completions", CHAT)
        streams = [
            post("chat/completions", {**CHAT, "stream": True}),
            post("responses", {"model": "demo", "input": "x", "stream": True}),
        ]
        wait_until(lambda: connection.zcard(schema.QUEUED) == 3)
        store = make_store()
        for job_id in connection.zrange(schema.QUEUED, 0, -1):
            writer = claimed(store, job_id.decode())
            writer.start()
            writer.tokens(1)
        time.sleep(0.2)
        gateway.process.terminate()
        answer = whole.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "gateway_stops")
        assert answer.headers["x-should-retry"] == "true"
        for stream in streams:
            assert stream.result().text.count("this gateway stops; send the call again") == 1
        assert gateway.process.wait(60) == 0
        assert "Traceback" not in gateway.errors


def test_a_gateway_takes_all_files_that_it_may_have_and_says_once_that_there_are_no_more(redis_url: str) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (32, 64)); from orcd.cli.main import main"
    with GatewayProcess(redis_url, program=["-c", f"{limited}; main()"]) as gateway:
        assert re.search(r"Max open files +64 +64", Path(f"/proc/{gateway.process.pid}/limits").read_text())
        address = urlsplit(gateway.url)
        with ExitStack() as opened:
            for _ in range(100):
                opened.enter_context(socket.create_connection((str(address.hostname), address.port or 0)))
            wait_until(lambda: "no file is left" in gateway.errors)
        assert httpx.get(f"{gateway.url}/models", timeout=60).status_code == 200
        assert len(gateway.errors.splitlines()) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_no_event_waits_until_the_one_before_is_acknowledged(host: str) -> None:
    with (
        listen(GatewaySettings(host=host, port=0)) as listening,
        socket.create_connection(listening.getsockname()[:2]),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_is_taken_is_wrong_usage() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "orcd", "gateway", "--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("orcd: INVALID_REQUEST: host, port: cannot listen on 127.0.0.1 port ")
    assert done.stderr.count("\n") == 1


def test_a_folder_of_files_that_cannot_be_made_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "orcd", "gateway", "--port", "0", "--files-dir", str(tmp_path / "file" / "folder")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("orcd: INVALID_REQUEST: files_dir: no file can be kept in ")
    assert done.stderr.count("\n") == 1


def test_a_folder_of_files_that_is_not_there_is_made(redis_url: str, tmp_path: Path) -> None:
    with GatewayProcess(redis_url, "--files-dir", str(tmp_path / "new" / "files")) as gateway:
        assert httpx.get(f"{gateway.url}/files").json()["data"] == []
    assert (tmp_path / "new" / "files").is_dir()
