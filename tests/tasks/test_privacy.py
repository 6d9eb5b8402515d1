"""No prompt and no answer outside the job's own keys: not in other Redis keys, Flower, metrics or logs."""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from orcd.client import Client
from orcd.errors import OrcdError
from orcd.store import schema
from orcd.store.dead_letters import DeadLetters
from tasks.app import create_app
from tasks.local.redis_server import free_port
from tests.conftest import wait_until
from tests.tasks.worker_process import ROOT, WorkerProcess
from worker.settings import Settings

CANARY = "Kanarienvogel-7263"
AUTH = "watcher:secret"


class Flower:
    """The pages and the API of a running Flower."""

    def __init__(self, port: int) -> None:
        self._port = port

    def get(self, path: str) -> str:
        token = base64.b64encode(AUTH.encode()).decode()
        url = f"http://127.0.0.1:{self._port}{path}"
        request = urllib.request.Request(url, headers={"Authorization": f"Basic {token}"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return str(response.read().decode())


@contextmanager
def _flower(redis_url: str, log_path: Path) -> Iterator[Flower]:
    port = free_port()
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("ORCD_")}
    with log_path.open("w") as log:
        command = [sys.executable, "-m", "celery", "-A", "tasks", "flower", "--address=127.0.0.1", f"--port={port}"]
        process = subprocess.Popen(
            [*command, f"--basic-auth={AUTH}"],
            env=inherited | {"ORCD_REDIS_URL": redis_url},
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
    try:
        flower = Flower(port)
        end = time.monotonic() + 60
        while True:
            try:
                flower.get("/api/tasks")
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end, log_path.read_text()
                time.sleep(0.1)
        yield flower
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_watching(flower: Flower, redis_url: str) -> int:
    """Flower answers before it receives events: wait until it has seen a whole job; returns how many there were."""
    end = time.monotonic() + 60
    with Client(redis_url) as client:
        for number in itertools.count(1):
            job_id = client.submit(prompt="warm up", max_tokens=1)
            client.result(job_id, timeout=60)
            time.sleep(0.3)
            seen = json.loads(flower.get("/api/tasks")).get(job_id, {})
            if seen.get("name") and seen["state"] == "SUCCESS":
                return number
            assert time.monotonic() < end, seen
    raise AssertionError


def _run_canary_jobs(redis_url: str) -> tuple[list[str], list[str]]:
    """Jobs of every kind with the canary in their prompts; returns the jobs' ids and their answers."""
    request = {"prompt": f"{CANARY} sings", "max_tokens": 40, "ignore_eos": True, "seed": 3}
    app = create_app(Settings(redis_url=redis_url))
    with Client(redis_url) as client:
        submitted = client.submit(**request)
        chat = client.submit(messages=[{"role": "user", "content": CANARY}], max_tokens=40, ignore_eos=True)
        sent = [
            app.send_task("orcd.generate", kwargs=request),
            app.send_task("orcd.generate", kwargs=request | {"temperature": CANARY}),
            app.send_task("orcd.generate", kwargs=request | {"on_disconnect": CANARY}),
            app.send_task("orcd.generate", args=[CANARY]),
            app.send_task("orcd.generate_chunk", kwargs={"requests": [request, request]}),
            app.send_task("tasks.no_such_task", kwargs=request, queue="orcd"),
        ]
        for result in sent[:-1]:
            try:
                result.get(timeout=60)
            except OrcdError as error:
                assert CANARY not in str(error)
        del result
        job_ids = [submitted, chat, sent[0].id, f"{sent[4].id}-0", f"{sent[4].id}-1"]
        results = [client.result(job_id, timeout=60) for job_id in job_ids]
        assert {result.state for result in results} == {"succeeded"}
        task_ids = [submitted, chat, *(result.id for result in sent)]
        del sent
    app.close()
    return task_ids, [result.text for result in results]


def test_prompts_and_answers_stay_in_the_jobs_own_keys(
    redis_url: str, shallow_chat_model: Path, tmp_path: Path
) -> None:
    port = free_port()
    with (
        WorkerProcess(redis_url, shallow_chat_model, tmp_path, ORCD_METRICS_PORT=str(port)) as worker,
        _flower(redis_url, tmp_path / "flower.log") as flower,
    ):
        num_warm_ups = _wait_until_watching(flower, redis_url)
        task_ids, answers = _run_canary_jobs(redis_url)
        secrets = [CANARY, *(answer for answer in answers if len(answer) > 20)]
        assert len(secrets) > 2
        worker.wait_for("execute_end", num_warm_ups + 5)

        end = time.monotonic() + 60
        tasks: dict[str, Any] = {}
        while not set(task_ids[:-1]) <= tasks.keys() or tasks[task_ids[0]]["state"] != "SUCCESS":
            assert time.monotonic() < end, tasks
            time.sleep(0.2)
            tasks = json.loads(flower.get("/api/tasks"))
        shown = tasks[task_ids[0]]
        assert shown["name"] == "orcd.generate"
        with Client(redis_url) as client:
            result = client.result(task_ids[0], timeout=60)
        assert shown["runtime"] * 1000 > result.decode_ms
        pages = ["/api/tasks", "/api/workers?refresh=1", "/tasks", "/workers", "/metrics"]
        pages += [f"/task/{task_id}" for task_id in tasks]
        texts: dict[str, str] = {}

        def tells_of_all_jobs() -> bool:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
                texts["metrics"] = response.read().decode()
            succeeded = [line for line in texts["metrics"].splitlines() if 'state="succeeded"' in line]
            assert all(line.startswith("orcd_jobs_total{") for line in succeeded)
            return [line.rpartition(" ")[2] for line in succeeded] == [f"{num_warm_ups + 5}.0"]

        wait_until(tells_of_all_jobs)  # the page is made once a second
        texts |= {page: flower.get(page) for page in pages}
    texts |= {str(path): path.read_text() for path in tmp_path.glob("*.log")}
    for place, text in texts.items():
        assert not [secret for secret in secrets if secret in text], place
    _check_redis(redis_url, task_ids, secrets)


def _check_redis(redis_url: str, task_ids: list[str], secrets: list[str]) -> None:
    with redis.Redis.from_url(redis_url) as connection:
        for key in connection.scan_iter("*"):
            if any(task_id in key.decode() for task_id in task_ids):
                continue
            if key.decode() == schema.DEAD:  # the message of another application, which is kept whole
                shown = [repr(letter) for letter in DeadLetters(connection)]
                assert len(shown) == 1
                assert CANARY not in shown[0]
                continue
            dump = connection.dump(key) or b""
            kind = connection.type(key)
            value = {
                b"string": connection.get,
                b"hash": connection.hgetall,
                b"list": lambda k: connection.lrange(k, 0, -1),
            }
            content = repr(value[kind](key)) if kind in value else repr(dump)
            encoded = [base64.b64encode(secret.encode()).decode()[:-4] for secret in secrets]
            assert not [secret for secret in (*secrets, *encoded) if secret in content], key
