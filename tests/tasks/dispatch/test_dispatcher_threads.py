"""A worker that loses one of its threads leaves in order, and its jobs go on elsewhere (F05); real workers."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orcd.client import Client
from tasks.local.redis_server import free_port
from tests.tasks.slow_engine import slow_engine
from tests.tasks.worker_process import WorkerProcess, wait_until_running

LONG: dict[str, Any] = {"prompt_token_ids": [9, 8, 7], "max_tokens": 50, "seed": 4, "ignore_eos": True}
SHORT: dict[str, Any] = {"prompt_token_ids": [5], "max_tokens": 2, "ignore_eos": True}

ASSASSIN = """
import ctypes, socket, sys, threading, time
from pathlib import Path

def is_dying(thread):  # it tells of its death already, which another exception would keep it from
    frame = sys._current_frames().get(thread.ident)
    while frame is not None and frame.f_code.co_name != "_supervise":
        frame = frame.f_back
    return frame is None or "error" in frame.f_locals

def take_nothing_at_once(connection, data, flags=0):
    if flags & socket.MSG_DONTWAIT:
        raise BlockingIOError
    return super(socket.socket, connection).send(data, flags)

def wait():
    victim = Path({victim!r})
    while not victim.exists():
        time.sleep(0.02)
    name = victim.read_text()
    if name == "engine writer":  # it wakes for what the engine does not take at once
        socket.socket.send = take_nothing_at_once
    while True:  # an exception of this kind arrives when the thread next runs Python code, where it may be ignored
        for thread in threading.enumerate():
            if thread.name == name and not is_dying(thread):
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(KeyError))
        time.sleep(0.2)

if "--fd" not in sys.orig_argv:  # not in the engine process
    threading.Thread(target=wait, daemon=True).start()
"""

Kill = Callable[[str], None]


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """What makes a worker's threads mortal, and its jobs take a while."""
    return slow_engine(tmp_path, before=ASSASSIN.format(victim=str(tmp_path / "victim")))


@pytest.fixture
def kill(tmp_path: Path) -> Kill:
    """Let the thread of this name die."""

    def kill(thread: str) -> None:
        (tmp_path / "half").write_text(thread)
        (tmp_path / "half").rename(tmp_path / "victim")

    return kill


def _readiness(port: int) -> Iterator[int]:
    """What a probe is told, again and again; 0 once nobody answers."""
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60) as response:
                yield response.status
        except urllib.error.HTTPError as error:
            yield error.code
        except OSError:
            yield 0
            return
        time.sleep(0.01)


@pytest.mark.parametrize(
    "thread",
    [
        *("claimer", "job runner", "engine reader", "engine writer", "lease keeper", "maintenance"),
        *("control listener", "health server"),
    ],
)
def test_a_worker_that_loses_a_thread_gives_its_jobs_back_and_leaves(
    redis_url: str, shallow_model: Path, tmp_path: Path, variables: dict[str, str], kill: Kill, thread: str
) -> None:
    port = free_port()
    with (
        WorkerProcess(redis_url, shallow_model, tmp_path, ORCD_METRICS_PORT=str(port), **variables) as worker,
        Client(redis_url) as client,
    ):
        job_id = client.submit(**LONG | {"max_tokens": 400})
        wait_until_running(client, [job_id], 5)
        readiness = _readiness(port)
        assert 200 in readiness  # on a busy machine it is silent for a while now and then
        kill(thread)
        for _ in readiness:
            client.submit(**SHORT)  # a thread that waits for something wakes
        assert worker.process.wait(60) == 1
        died = [event for event in worker.events("error") if event.get("thread")]
        assert (died[0]["thread"], died[0]["cause"], died[0]["code"]) == (thread, "KeyError", "INTERNAL")
        status = client.status(job_id)
        assert (status.state, status.attempt) == ("queued", 0), "given back, which is nobody's failure"


def test_the_jobs_of_a_worker_that_lost_its_job_runner_go_on_elsewhere(
    redis_url: str, shallow_model: Path, tmp_path: Path, variables: dict[str, str], kill: Kill
) -> None:
    variables |= {"ORCD_LEASE_MS": "60000"}  # nobody is to find it dead: it gives its job back
    with Client(redis_url) as client, WorkerProcess(redis_url, shallow_model, tmp_path, **variables) as loser:
        expected = client.result(client.submit(**LONG), timeout=60)
        job_id = client.submit(**LONG)
        wait_until_running(client, [job_id], 5)
        with WorkerProcess(redis_url, shallow_model, tmp_path):
            kill("job runner")
            result = client.result(job_id, timeout=60)
            assert (result.state, result.text) == ("succeeded", expected.text)
            assert client.status(job_id).attempt == 1
        assert loser.process.wait(60) == 1
