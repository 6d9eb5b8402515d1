"""What Flower's pages show of jobs that run, succeed, fail, are cancelled and expire; real worker, real Flower."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orcd.client import Client
from tasks.app import create_app
from tasks.local.redis_server import RedisServer, free_port
from tests.conftest import emptied, wait_until
from tests.tasks.slow_engine import held_engine, slow_engine
from tests.tasks.worker_process import WorkerProcess
from worker.settings import Settings

CANARY = "Kanarienvogel"
AUTH = "watcher:secret"
LONG = {"prompt": f"{CANARY} sings", "max_tokens": 400, "ignore_eos": True}


class Pages:
    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self.seen: list[str] = []

    def get(self, path: str) -> str:
        token = base64.b64encode(AUTH.encode()).decode()
        request = urllib.request.Request(self._url + path, headers={"Authorization": f"Basic {token}"})
        with urllib.request.urlopen(request, timeout=60) as response:
            text = str(response.read().decode())
        self.seen.append(text)
        return text

    def answers(self) -> bool:
        try:
            return bool(self.get("/api/tasks"))
        except OSError:
            return False

    def task(self, task_id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/api/tasks")).get(task_id, {})
        return found


@contextmanager
def flower(redis_url: str, log_path: Path) -> Iterator[Pages]:
    port = free_port()
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("ORCD_", "FLOWER_"))}
    settings = {"ORCD_REDIS_URL": redis_url, "FLOWER_BASIC_AUTH": AUTH}
    command = [sys.executable, "-m", "orcd", "flower", "--address=127.0.0.1", f"--port={port}"]
    with log_path.open("w") as log:
        process = subprocess.Popen(command, env=inherited | settings, cwd=log_path.parent, stdout=log, stderr=log)
    try:
        pages = Pages(port)
        wait_until(pages.answers, timeout_s=60)
        yield pages
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of the worker's engine."""
    return tmp_path_factory.mktemp("flower")


@pytest.fixture(scope="module")
def scene(shared_redis: RedisServer, shallow_model: Path, folder: Path) -> Iterator[tuple[Client, Pages]]:
    """A client and Flower, with a worker whose steps take long."""
    url, slow = emptied(shared_redis), slow_engine(folder)
    with (
        WorkerProcess(url, shallow_model, folder, **slow),
        flower(url, folder / "flower.log") as pages,
        Client(url) as client,
    ):

        def sees_a_whole_job() -> bool:  # Flower answers before it receives events
            job_id = client.submit(prompt="warm up", max_tokens=1)
            client.result(job_id, timeout=60)
            return bool(pages.task(job_id).get("name"))

        wait_until(sees_a_whole_job, timeout_s=60)
        yield client, pages
        shown = [text for text in [*pages.seen, *(log.read_text() for log in folder.glob("*.log"))] if CANARY in text]
        assert shown == [], "a prompt"


def test_a_job_that_runs_shows_its_progress_and_cancelled_it_is_revoked(
    scene: tuple[Client, Pages], folder: Path
) -> None:
    client, pages = scene
    with held_engine(folder, 200):
        job_id = client.submit(**LONG)
        wait_until(lambda: "tokens so far" in (pages.task(job_id).get("result") or ""))
        assert pages.task(job_id)["state"] == "STARTED"
        client.cancel(job_id)
    wait_until(lambda: pages.task(job_id)["state"] == "REVOKED")
    page = pages.get(f"/task/{job_id}")
    assert "Traceback" not in page
    assert ">REVOKED<" in page


def test_a_job_that_succeeds_shows_its_figures(scene: tuple[Client, Pages]) -> None:
    client, pages = scene
    job_id = client.submit(prompt=CANARY, max_tokens=3, ignore_eos=True)
    client.result(job_id, timeout=60)
    wait_until(lambda: pages.task(job_id).get("state") == "SUCCESS")
    figures = r"model=haiku-q4_k_m finish_reason=length tokens_in=\d+ tokens_out=3 tokens_per_s=[\d.]+ queue_ms=\d+ "
    assert re.search(figures + r"first_token_ms=\d+", pages.task(job_id)["result"])
    assert "finish_reason=length" in pages.get(f"/task/{job_id}")


def test_a_job_that_fails_names_its_error_without_a_traceback(scene: tuple[Client, Pages]) -> None:
    client, pages = scene
    job_id = client.submit(prompt=CANARY * 100_000, max_tokens=3)
    assert client.result(job_id, timeout=60).error is not None
    wait_until(lambda: pages.task(job_id).get("state") == "FAILURE")
    assert pages.task(job_id)["exception"] == "ContextLengthExceeded"
    assert "Traceback" not in pages.get(f"/task/{job_id}")


def test_a_job_that_expires_is_no_failure(scene: tuple[Client, Pages]) -> None:
    client, pages = scene
    runs = client.submit(**LONG | {"deadline_s": 1.0})
    assert client.result(runs, timeout=60).state == "expired"
    wait_until(lambda: pages.task(runs).get("state") == "EXPIRED")
    with create_app(Settings(redis_url=client._settings.redis_url)) as app:
        sent = app.send_task("orcd.generate", kwargs={"prompt": CANARY}, expires=-10).id
    wait_until(lambda: pages.task(sent).get("state") == "EXPIRED")
    assert "Traceback" not in pages.get(f"/task/{runs}")


def test_the_broker_page_lists_queues_that_nobody_serves(scene: tuple[Client, Pages]) -> None:
    client, pages = scene
    client.submit(prompt=CANARY, model="nobodys")
    page = pages.get("/broker")
    assert "orcd.nobodys" in page
    assert "orcd.haiku-q4_k_m" in page


def test_a_workers_page_names_its_model_and_device(scene: tuple[Client, Pages]) -> None:
    _, pages = scene
    wait_until(lambda: json.loads(pages.get("/api/workers?refresh=1")))
    [(name, info)] = json.loads(pages.get("/api/workers?refresh=1")).items()
    assert (info["stats"]["pool"]["model"], info["stats"]["pool"]["device"]) == ("haiku-q4_k_m", "cpu")
    page = pages.get(f"/worker/{name}")
    assert "haiku-q4_k_m" in page


def test_nothing_can_be_changed_by_default(scene: tuple[Client, Pages], folder: Path) -> None:
    client, pages = scene
    with held_engine(folder):
        job_id = client.submit(**LONG)
        wait_until(lambda: pages.task(job_id).get("state") == "STARTED")
        assert "task-terminate" not in pages.get(f"/task/{job_id}")
        client.cancel(job_id)
