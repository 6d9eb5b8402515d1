"""A day of mixed work, with failures: its prompts, answers, keys and passwords are in no log, page, figure or span."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import openai
import pytest
import redis
from celery import Celery

from orcd.async_client import AsyncClient
from orcd.client import Client
from orcd.errors import OrcdError
from orcd.store.dead_letters import DeadLetters
from tasks.app import create_app
from tasks.local.redis_server import RedisServer, free_port
from tasks.observe.health.health_server import METRICS_EVERY_S
from tests.conftest import wait_until
from tests.orcd.cli.command_line import run_apart
from tests.orcd.gateway.gateway_process import GatewayProcess
from tests.tasks.observe.test_job_tracer_worker import Collector
from tests.tasks.slow_engine import held_engine, slow_engine
from tests.tasks.test_flower_program_pages import AUTH, Pages, flower
from tests.tasks.worker_process import WorkerProcess, wait_until_running
from worker.settings import Settings

PROMPT = "Kanarienvogel-7263"
API_KEY, WRONG_KEY, PASSWORD, IDEMPOTENCY_KEY = "sk-kanarien-1", "sk-kanarien-2", "kanarien-3", "kanarien-4"
KEYS = (API_KEY, WRONG_KEY, PASSWORD, IDEMPOTENCY_KEY)
REQUEST: dict[str, Any] = {"prompt": f"{PROMPT} sings", "max_tokens": 40, "ignore_eos": True}
LONG = REQUEST | {"max_tokens": 900}
TOO_LONG = REQUEST | {"prompt": PROMPT * 20_000}
OPERATORS = ("workers", "queue", "jobs", "jobs --state failed", "dead list", "doctor", "top --count 1")


@dataclass
class Day:
    """A worker, a gateway and Flower on a Redis with a password, and what was said to anybody."""

    url: str
    folder: Path
    worker: WorkerProcess
    gateway: GatewayProcess
    pages: Pages
    metrics_url: str
    answers: list[str] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)
    """What operators and senders read, answers aside, by where it stood."""

    def failed(self, where: str, error: Exception) -> None:
        """An error was raised to a sender."""
        self.said[f"error {where}"] = repr(error)

    def command(self, *arguments: str) -> None:
        """Run ``orcd``; what it says to standard error is kept, and for operators what it prints, too."""
        environment = {name: text for name, text in os.environ.items() if not name.startswith("ORCD_")}
        code, out, err = run_apart(
            arguments, self.folder, environment | {"ORCD_REDIS_URL": self.url, "ORCD_DEVICE": "cpu"}
        )
        what = " ".join(arguments)
        self.said[f"stderr of {what}"] = err
        if arguments[0] not in ("generate", "batch"):
            assert code in (0, 1), err
            self.said[f"stdout of {what}"] = out


def use_clients(day: Day) -> None:
    """Client and AsyncClient: jobs that succeed, are refused, fail, are cancelled and expire."""
    with Client(day.url) as client:
        day.answers.append("".join(client.chat(PROMPT, max_tokens=40, ignore_eos=True)))
        job_id = client.submit(**REQUEST, idempotency_key=IDEMPOTENCY_KEY, tenant=PROMPT)
        day.answers.append(client.result(job_id, timeout=60).text)
        for name in ("temperature", "structured_outputs", "prompt_token_ids"):
            with pytest.raises(OrcdError) as caught:
                client.submit(**REQUEST | {name: PROMPT})
            day.failed(f"of a wrong {name}", caught.value)
        with held_engine(day.folder):
            asked = (LONG, LONG | {"deadline_s": 0.5}, TOO_LONG)
            cancelled, expired, too_long = (client.submit(**each) for each in asked)
            client.cancel(cancelled)
            for state, job_id in {"cancelled": cancelled, "expired": expired, "failed": too_long}.items():
                result = client.result(job_id, timeout=60)
                assert result.state == state
                day.said[f"error of a job that {state}"] = repr(result.error)
                day.command("status", job_id)

    async def follow() -> None:
        async with AsyncClient(day.url) as client:
            for result in [await client.result(each) for each in await client.submit_many([REQUEST] * 3)]:
                day.answers.append(result.text)

    asyncio.run(follow())


def use_celery(day: Day) -> None:
    """Any Celery sender: tasks, a chunk, a wrong one, a revoked one; and messages that nobody can read."""
    with create_app(Settings(redis_url=day.url)) as app:
        send_tasks(day, app)
        gc.collect()  # a result unsubscribes when it is collected, which must be before its connections are closed
        app.backend.result_consumer.stop()
        app.backend.client.connection_pool.disconnect()
    with redis.Redis.from_url(day.url) as connection:
        connection.lpush("orcd", PROMPT, json.dumps({"body": PROMPT, "headers": {"task": PROMPT}}))
        wait_until(lambda: len(list(DeadLetters(connection))) >= 3)


def send_tasks(day: Day, app: Celery) -> None:
    """Those that succeed, fail and are revoked, and one of another application."""
    app.send_task("orcd.generate", kwargs=REQUEST).get(timeout=60)
    app.send_task("orcd.generate_chunk", kwargs={"requests": [REQUEST, REQUEST]}).get(timeout=60)
    wrong: list[dict[str, Any]] = [{"kwargs": REQUEST | {"seed": PROMPT}}, {"args": [PROMPT]}]
    for number, arguments in enumerate(wrong):
        with pytest.raises(OrcdError) as caught:
            app.send_task("orcd.generate", **arguments).get(timeout=60)
        day.failed(f"of wrong task {number}", caught.value)
    with held_engine(day.folder), Client(day.url) as client:
        revoked = app.send_task("orcd.generate", kwargs=LONG)
        wait_until_running(client, [revoked.id])
        app.control.revoke(revoked.id, terminate=True)
        assert client.result(revoked.id, timeout=60).state == "cancelled"
    app.send_task("elsewhere.task", kwargs=REQUEST, queue="orcd")


def use_command_line(day: Day) -> None:
    """``orcd generate`` and ``orcd batch``, whose file has lines that are broken, wrong and too long."""
    lines = [
        json.dumps(REQUEST),
        json.dumps(REQUEST | {"top_p": PROMPT}),
        '{"prompt": "' + PROMPT,
        json.dumps(TOO_LONG),
    ]
    (day.folder / "day.jsonl").write_text("\n".join(lines))
    day.command("batch", "day.jsonl", "day.results.jsonl")
    day.command("generate", PROMPT, "--max-tokens", "8")
    day.command("generate", PROMPT, "--model", "nobodys", "--fail-fast")


def use_gateway(day: Day) -> None:
    """OpenAI's client: answers, streams, background responses, batches, wrong keys and wrong bodies."""
    model = "haiku-q4_k_m"
    messages: list[Any] = [{"role": "user", "content": PROMPT}]
    with openai.OpenAI(base_url=day.gateway.url, api_key=API_KEY, max_retries=0) as client:
        answer = client.chat.completions.create(model=model, messages=messages, max_tokens=20)
        day.answers.append(answer.choices[0].message.content or "")
        for _ in client.chat.completions.create(model=model, messages=messages, max_tokens=20, stream=True):
            pass
        with held_engine(day.folder):
            response = client.responses.create(model=model, input=PROMPT, background=True, max_output_tokens=600)
            client.responses.cancel(response.id)
        bodies: list[dict[str, Any]] = [
            {"model": model, "messages": messages, "max_tokens": 20},
            {"model": model, "messages": [{"role": PROMPT}]},
        ]
        lines = [
            {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": body}
            for n, body in enumerate(bodies)
        ]
        file = client.files.create(file=("day.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        wait_until(lambda: client.batches.retrieve(batch.id).status == "completed", timeout_s=60)
        wrong: list[dict[str, Any]] = [
            {"temperature": PROMPT},
            {"extra_body": {"grammar": PROMPT}},
            {"model": "nobodys"},
        ]
        for number, body in enumerate(wrong):
            with pytest.raises(openai.APIStatusError) as caught:
                client.chat.completions.create(**{"model": model, "messages": messages} | body)
            day.said[f"answer to wrong body {number}"] = caught.value.response.text
    with openai.OpenAI(base_url=day.gateway.url, api_key=WRONG_KEY, max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            client.models.list()
        day.said["answer to a wrong key"] = refused.value.response.text


def break_things(day: Day) -> None:
    """Redis cuts every connection, and the engine is killed, while jobs run."""
    with Client(day.url) as client, redis.Redis.from_url(day.url) as connection:
        with held_engine(day.folder):
            job_ids = [client.submit(**REQUEST | {"max_tokens": 200}) for _ in range(3)]
            wait_until_running(client, job_ids)
            connection.client_kill_filter(skipme=True)
            day.worker.kill_engine()
        day.answers += [client.result(job_id, timeout=200).text for job_id in job_ids]


def look(day: Day) -> None:
    """What operators look at: the command line, Flower, health and metrics."""
    for command in OPERATORS:
        day.command(*command.split())
        if not command.startswith("doctor"):
            day.command(*command.split(), "--json")
    tasks: dict[str, Any] = {}

    def shows_all_ends() -> bool:
        tasks.update(json.loads(day.pages.get("/api/tasks")))
        return {task["state"] for task in tasks.values()} >= {"SUCCESS", "FAILURE", "REVOKED"}

    wait_until(shows_all_ends)
    for page in (
        "/tasks",
        "/workers",
        "/broker",
        "/metrics",
        "/api/workers?refresh=1",
        *(f"/task/{each}" for each in tasks),
    ):
        day.pages.get(page)
    for worker in json.loads(day.pages.get("/api/workers")):
        day.pages.get(f"/worker/{worker}")
    time.sleep(3 * METRICS_EVERY_S)  # the page is made once a second
    for page in ("metrics", "health/live", "health/ready", "health/load"):
        try:
            response: Any = urllib.request.urlopen(f"{day.metrics_url}/{page}", timeout=60)
        except urllib.error.HTTPError as unready:  # silent for too long, as the machine is busy: that is an answer, too
            response = unready
        with response:
            day.said[page] = response.read().decode()
    assert "orcd_job_errors_total" in day.said["metrics"]


def values(connection: redis.Redis) -> Iterator[tuple[str, str]]:
    """Each key of the database with what it holds, for people."""
    read: dict[Any, Any] = {
        b"string": connection.get, b"hash": connection.hgetall, b"stream": connection.xrange,
        b"set": connection.smembers,
        b"list": lambda key: connection.lrange(key, 0, -1), b"zset": lambda key: connection.zrange(key, 0, -1),
    }  # fmt: skip
    for key in connection.scan_iter("*"):
        yield key.decode(), repr(read[connection.type(key)](key))


def test_a_day_of_mixed_work_tells_no_secret(
    redis_server: RedisServer, shallow_chat_model: Path, tmp_path: Path
) -> None:
    url = redis_server.url.replace("://", f"://:{PASSWORD}@")
    with redis.Redis.from_url(redis_server.url) as connection:
        connection.config_set("requirepass", PASSWORD)
    (tmp_path / "keys.toml").write_text(f'[[keys]]\nname = "day"\nkey = "{API_KEY}"\n')
    metrics_port = free_port()
    with ExitStack() as stack, Collector() as collector:
        Thread(target=collector.serve_forever, daemon=True).start()
        stack.callback(collector.shutdown)
        variables: dict[str, Any] = {
            "ORCD_METRICS_PORT": str(metrics_port), "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}", **slow_engine(tmp_path, 0.0),
        }  # fmt: skip
        gateway = GatewayProcess(
            url, "--api-key-file", str(tmp_path / "keys.toml"), "--files-dir", str(tmp_path / "files")
        )
        with WorkerProcess(url, shallow_chat_model, tmp_path, **variables) as worker, gateway:
            pages = stack.enter_context(flower(url, tmp_path / "flower.log"))
            day = Day(url, tmp_path, worker, gateway, pages, f"http://127.0.0.1:{metrics_port}")
            for part in (use_clients, use_celery, use_command_line, use_gateway, break_things, look):
                part(day)
            gateway.process.terminate()
            gateway.process.wait(60)
            day.said["gateway's log"] = gateway.errors
        stack.close()
        day.said |= {path.name: path.read_text() for path in tmp_path.glob("*.log")}
        day.said["Flower"] = "\n".join(pages.seen)
        day.said["spans"] = b"".join(collector.bodies).decode("latin-1")
    secrets = [PROMPT, *KEYS, AUTH.partition(":")[2], *(answer for answer in day.answers if len(answer) > 20)]
    assert len(secrets) > 10
    assert all(day.said[place] for place in ("Flower", "spans", "metrics", "flower.log"))
    for place, text in day.said.items():
        assert not [secret for secret in secrets if secret in text], place
    with redis.Redis.from_url(url) as connection:
        for name, value in values(connection):
            assert not [key for key in KEYS if key in name + value], name
