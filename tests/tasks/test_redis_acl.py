"""The rights in docs/redis.acl are enough for workers, clients, gateways and Flower, and no more than these use."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import openai
import pytest
import redis
from celery import Celery, chord, group

from orcd.async_client import AsyncClient
from orcd.client import Client
from tasks.app import create_app
from tasks.local.redis_server import free_port
from tests.conftest import wait_until
from tests.orcd.cli.command_line import run_apart
from tests.orcd.gateway.gateway_process import GatewayProcess
from tests.orcd.redis_servers import ConfiguredServer
from tests.tasks.slow_engine import slow_engine
from tests.tasks.worker_process import WorkerProcess, wait_until_running
from worker.settings import Settings

RIGHTS = Path(__file__).parents[2] / "docs" / "redis.acl"
REQUEST: dict[str, Any] = {"prompt": "once", "max_tokens": 20, "temperature": 0, "ignore_eos": True}
CONTAINERS = ("script", "pubsub", "client", "object")
FREE = {"hello", "auth"}
"""Commands that no right is needed for."""


class Watch:
    """Notes the commands that Redis runs, also those of scripts, until the block ends."""

    def __init__(self, port: int) -> None:
        self.commands: set[str] = set()
        self._connection = redis.Redis(port=port, socket_timeout=None)  # nobody may say anything for a while
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with self._connection.monitor() as monitor:
            self._started.set()
            for entry in monitor.listen():
                name, *arguments = entry["command"].lower().split(" ")
                if name == "echo":
                    return
                self.commands.add(f"{name}|{arguments[0]}" if name in CONTAINERS else name)

    def __enter__(self) -> Watch:
        self._started = threading.Event()
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.echo("stop")
        self._thread.join()
        self._connection.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ConfiguredServer]:
    rights = tmp_path / "redis.acl"
    rights.write_text(RIGHTS.read_text().replace(">CHANGE-THIS", ">pass"))
    with ConfiguredServer(aclfile=str(rights)) as server:
        yield server


def test_everything_works_with_the_rights_and_uses_them_all(
    server: ConfiguredServer, shallow_chat_model: Path, tmp_path: Path
) -> None:
    url = f"redis://orcd:pass@127.0.0.1:{server.port}/0"
    variables = slow_engine(tmp_path) | {"ORCD_METRICS_PORT": str(free_port())}  # slow: what is cancelled still runs
    with (
        Watch(server.port) as watch,
        WorkerProcess(url, shallow_chat_model, tmp_path, **variables) as worker,
        Client(url) as client,
    ):
        _use_clients(client, url)
        with create_app(Settings(redis_url=url)) as app:
            _use_celery(app, client)
        _use_command_line(url)
        _use_gateway(url, tmp_path)
        job_id = client.submit(**REQUEST | {"max_tokens": 400})
        wait_until_running(client, [job_id])
        worker.kill()
        with WorkerProcess(url, shallow_chat_model, tmp_path) as other:
            assert client.result(job_id, timeout=60).finish_reason == "length"
            (name,) = [each.name for each in client.workers() if each.pid == other.process.pid]
            _run_command(url, "drain", name)
    with redis.Redis(port=server.port) as connection:
        assert connection.acl_log() == []
    granted = set(re.findall(r"\+(\S+)", RIGHTS.read_text()))
    used = (watch.commands | _commands_of_scripts()) - FREE
    assert granted == used & granted, f"docs/redis.acl grants what nobody uses: {sorted(granted - used)}"


def _commands_of_scripts() -> set[str]:
    texts = [path.read_text(encoding="utf-8") for path in files("orcd.store").joinpath("lua").iterdir()]
    return {name.lower() for text in texts for name in re.findall(r"redis\.p?call(?:\(|, )'([A-Z]+)'", text)}


def _use_clients(client: Client, url: str) -> None:
    async def use() -> str:
        async with AsyncClient(url) as other:
            await other.workers()
            return "".join([text async for text in other.stream(**REQUEST)])

    assert "".join(client.stream(**REQUEST)) == asyncio.run(use())
    assert "".join(client.stream(**REQUEST | {"max_tokens": 100, "on_disconnect": "cancel"}))
    job_ids = client.submit_many([REQUEST | {"max_tokens": 400}, REQUEST])
    wait_until_running(client, job_ids[:1])
    assert client.cancel(job_ids[0]) == "running"
    assert [client.result(job_id).finish_reason for job_id in job_ids] == [None, "length"]
    assert len(client.workers()) == 1


def _use_celery(app: Celery, client: Client) -> None:
    """Canvas, inline requests, revoking, what Flower asks, and a message that cannot be read."""

    def signature(**fields: Any) -> Any:
        return app.signature("orcd.generate", kwargs=REQUEST | fields, queue="orcd", immutable=True)

    (signature() | signature()).delay().get(timeout=60)
    group([signature(), signature()]).delay().get(timeout=60)
    chord([signature(), signature()])(signature()).get(timeout=60)
    signature().apply_async(countdown=0.2, link=signature()).get(timeout=60)
    revoked = signature(max_tokens=400).delay()
    wait_until_running(client, [revoked.id])
    revoked.revoke(terminate=True)
    with pytest.raises(Exception, match=r"terminated|revoked"):  # by whom of two that hear of it
        revoked.get(timeout=60)
    inspect = app.control.inspect(timeout=20, limit=1)
    assert inspect.stats() and inspect.active_queues()
    events: list[Any] = []
    deadline = time.monotonic() + 60
    with app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": events.append})
        while not events:
            assert time.monotonic() < deadline, "no event of a worker was seen"
            with suppress(TimeoutError):
                receiver.capture(limit=1, timeout=3, wakeup=True)


def _use_command_line(url: str) -> None:
    with redis.Redis(port=int(url.rpartition(":")[2].partition("/")[0])) as connection:
        connection.lpush("orcd", "unreadable")
        wait_until(lambda: connection.exists("orcd:dead"))
        (letter,) = (entry_id.decode() for entry_id, _ in connection.xrange("orcd:dead"))
    for command in ("workers", "queue", "dead list", f"dead show {letter}", f"dead retry {letter}", "migrate"):
        _run_command(url, *command.split())
    _run_command(url, "dead", "drop", "--all")


def _use_gateway(url: str, folder: Path) -> None:
    keys = folder / "keys.toml"
    keys.write_text('[[keys]]\nname = "a"\nkey = "k"\nrequests_per_minute = 1000')
    with (
        GatewayProcess(url, "--files-dir", str(folder), "--api-key-file", str(keys)) as gateway,
        openai.OpenAI(base_url=gateway.url, api_key="k", max_retries=0) as sdk,
    ):
        assert sdk.models.list().data
        answer = sdk.responses.create(input="once", max_output_tokens=4, background=True)
        wait_until(lambda: sdk.responses.retrieve(answer.id).status == "incomplete")
        sdk.responses.delete(answer.id)
        body = '{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "once"}}'
        file = sdk.files.create(file=("in.jsonl", body.encode()), purpose="batch")
        first, second = (
            sdk.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
            for _ in range(2)
        )
        sdk.batches.cancel(second.id)
        wait_until(lambda: {batch.status for batch in sdk.batches.list()} <= {"completed", "cancelled"})
        assert sdk.batches.retrieve(first.id).request_counts.completed == 1


def _run_command(url: str, *arguments: str) -> None:
    code, _, err = run_apart([*arguments, "--redis", url], Path.cwd(), os.environ)
    assert code == 0, err
