"""A worker and clients on every kind of Redis that ``ORCD_REDIS_URL`` can name."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from flower.utils.broker import Broker

from orcd.async_client import AsyncClient
from orcd.client import Client
from orcd.errors import InvalidRequest
from orcd.store import redis_connection
from orcd.store.dead_letters import DeadLetters
from tasks.app import create_app
from tasks.local import redis_server
from tests.conftest import wait_until
from tests.orcd.redis_servers import MASTER, Certificates, ConfiguredServer, sentinels, tls_server
from tests.tasks.slow_engine import held_engine, slow_engine
from tests.tasks.worker_process import WorkerProcess
from worker.settings import Settings

PASSWORD = "ca/na@ry#pass?wo:rd%"
"""Every character that means something in a URL."""
REQUEST = {"prompt": "once", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
LONG = REQUEST | {"max_tokens": 250}


def _with_password(server: ConfiguredServer) -> None:
    with redis.Redis(port=server.port) as connection:
        connection.config_set("requirepass", PASSWORD)
        connection.config_set("masterauth", PASSWORD)


def _plain(_folder: Path, stack: ExitStack) -> str:
    server = stack.enter_context(ConfiguredServer())
    _with_password(server)
    return f"redis://:{PASSWORD}@127.0.0.1:{server.port}/5"


def _socket(folder: Path, stack: ExitStack) -> str:
    server = stack.enter_context(ConfiguredServer(unixsocket=str(folder / "redis.sock")))
    _with_password(server)
    return f"unix://:{PASSWORD}@{folder}/redis.sock?db=5"


def _tls(folder: Path, stack: ExitStack) -> str:
    certificates, port = Certificates(folder), redis_server.free_port()
    _with_password(stack.enter_context(tls_server(certificates, port)))
    certificate, key = certificates.client
    files = f"ssl_ca_certs={certificates.authority}&ssl_certfile={certificate}&ssl_keyfile={key}"
    return f"rediss://:{PASSWORD}@127.0.0.1:{port}/5?{files}"


def _sentinels(folder: Path, stack: ExitStack) -> str:
    master = stack.enter_context(ConfiguredServer())
    replica = stack.enter_context(ConfiguredServer(replicaof=f"127.0.0.1 {master.port}"))
    for server in (master, replica):
        _with_password(server)
    ports = stack.enter_context(sentinels(master.port, folder, PASSWORD))
    return f"redis+sentinel://:{PASSWORD}@{','.join(f'127.0.0.1:{port}' for port in ports)}/{MASTER}/5"


@pytest.fixture(params=[_plain, _socket, _tls, _sentinels], ids=lambda kind: kind.__name__.strip("_"))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A Redis of the kind, with a password; the jobs are in its database 5."""
    kind: Callable[[Path, ExitStack], str] = request.param
    with ExitStack() as stack:
        yield kind(tmp_path, stack)


def test_jobs_run_and_nobody_is_shown_the_password(url: str, shallow_model: Path, tmp_path: Path) -> None:
    with WorkerProcess(url, shallow_model, tmp_path) as worker, Client(url) as client:
        text = "".join(client.stream(**REQUEST))
        assert text
        assert asyncio.run(stream_async(url, REQUEST)) == text
        with create_app(Settings(redis_url=url)) as app:
            sent = app.send_task("orcd.generate", kwargs={**REQUEST}, queue="orcd")
            assert sent.get(timeout=60)["choices"][0]["text"] == text
            inspect = app.control.inspect(timeout=20, limit=1)
            shown = [json.dumps(inspect.conf()), json.dumps(inspect.stats())]
            shown += [app.connection().as_uri(), app.backend.as_uri(), repr(app.connection()), repr(app.conf)]
        shown += [worker.log_path.read_text(), repr(Settings(redis_url=url))]
    for number, text in enumerate(shown):
        assert text != "null" and not any(part in text for part in ("ca/na", "ca%2Fna", "ry#pass", "pass?wo")), number


async def stream_async(url: str, request: dict[str, Any]) -> str:
    """The text of a job, as an asynchronous client streams it."""
    async with AsyncClient(url) as client:
        return "".join([text async for text in client.stream(**request)])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Flower leaves its connections open
@pytest.mark.parametrize("url", [_plain, _tls], indirect=True, ids=["plain", "tls"])  # elsewhere it asks database 0
def test_flower_which_connects_by_itself_shows_the_queues(url: str) -> None:
    with Client(url) as client:
        client.submit(prompt="x")
    with create_app(Settings(redis_url=url)) as app, app.connection() as connection:
        uri, options = connection.as_uri(include_password=True), app.conf.broker_transport_options
        options |= {"socket_connect_timeout": 60}  # Flower gives up after a second, which a busy machine may need
        broker = Broker(uri, broker_options=options, broker_use_ssl=app.conf.broker_use_ssl)
        assert asyncio.run(broker.queues(["orcd"])) == [{"name": "orcd", "messages": 1}]
    gc.collect()  # so that no other test hears of them


@pytest.mark.parametrize("what", ["a cluster", "a sentinel", "a wrong password", "an unknown certificate"])
def test_a_worker_leaves_with_one_line_where_waiting_does_not_help(
    what: str, shallow_model: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        url, words = _useless_redis(what, tmp_path, stack)
        worker = WorkerProcess(url, shallow_model, tmp_path)
        assert worker.process.wait(60) == 1
    (error,) = worker.events("error")
    assert error["code"] == "REDIS_UNAVAILABLE"
    assert words in error["message"]
    log = worker.log_path.read_text()
    assert "Traceback" not in log
    assert "canary" not in log


def _useless_redis(what: str, folder: Path, stack: ExitStack) -> tuple[str, str]:
    """An address, and what is said of it."""
    match what:
        case "a cluster":
            return stack.enter_context(ConfiguredServer(cluster_enabled="yes")).url, "is a Redis Cluster"
        case "a sentinel":
            master = stack.enter_context(ConfiguredServer())
            stack.enter_context(ConfiguredServer(replicaof=f"127.0.0.1 {master.port}"))
            (port, *_) = stack.enter_context(sentinels(master.port, folder))
            return f"redis://127.0.0.1:{port}", "is a sentinel; use redis+sentinel://"
        case "a wrong password":
            server = stack.enter_context(ConfiguredServer())
            _with_password(server)
            return f"redis://:canary@127.0.0.1:{server.port}/0", "refuses the password"
        case _:
            port = redis_server.free_port()
            stack.enter_context(tls_server(Certificates(folder), port))
            return f"rediss://:canary@127.0.0.1:{port}", "self-signed certificate in certificate chain"


def test_systems_with_prefixes_share_a_database_and_see_nothing_of_each_other(
    redis_url: str, connection: redis.Redis, shallow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connection.pubsub() as every_channel:
        every_channel.psubscribe("*")
        waiting = _submit_with_prefix("", redis_url, monkeypatch)
        slow = slow_engine(tmp_path, 0.0)
        for prefix in ("a:", "b:"):
            with WorkerProcess(redis_url, shallow_model, tmp_path, ORCD_KEY_PREFIX=prefix, **slow):
                monkeypatch.setenv("ORCD_KEY_PREFIX", prefix)
                _use_one_of_the_systems(redis_url, connection, prefix, tmp_path)
        keys = {key.decode() for key in connection.scan_iter()}
        channels = _channels(every_channel)
        assert connection.llen("orcd:5") == 1
    with Client(redis_url) as client, pytest.raises(InvalidRequest, match="unknown"):
        client.status(waiting)
    names = (keys | channels) - {f"orcd:{{{waiting}}}:{part}" for part in ("job", "events")}
    names -= {"orcd", "orcd:5", "orcd:queued", "orcd:wake", "orcd:emptied"}
    names -= {"_kombu.binding.orcd", "_kombu.binding_permanent.orcd"}
    assert names
    assert {name for name in names if not name.startswith(("a:", "b:"))} == set()


def _submit_with_prefix(prefix: str, url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ORCD_KEY_PREFIX", prefix)
    with Client(url) as client:
        return client.submit(prompt="x")


def _use_one_of_the_systems(url: str, connection: redis.Redis, prefix: str, folder: Path) -> None:
    with Client(url) as client:
        text = "".join(client.stream(**REQUEST))
        assert text == asyncio.run(stream_async(url, REQUEST))
        assert len(client.workers()) == 1
        with held_engine(folder):
            cancelled = client.submit(**LONG)
            assert client.cancel(cancelled) in ("running", "cancelled")
            assert client.result(cancelled, timeout=60).error
    settings = Settings(redis_url=url, key_prefix=prefix)
    with create_app(settings) as app:
        assert len(app.control.inspect(timeout=20, limit=1).ping() or {}) == 1
    broker = {"global_keyprefix": prefix}
    with Celery(
        broker=url,
        backend=url,
        set_as_current=False,
        broker_transport_options=broker,
        result_backend_transport_options=broker,
    ) as foreign:
        sent = foreign.send_task("orcd.generate", kwargs=REQUEST, queue="orcd")
        assert sent.get(timeout=60)["choices"][0]["text"] == text
    connection.lpush(f"{prefix}orcd", "unreadable")
    wait_until(lambda: connection.exists(f"{prefix}orcd:dead"))
    with redis_connection.connect(settings) as own:
        letters = DeadLetters(own, prefix)
        (letter,) = letters
        assert letters.retry(letter.id, "elsewhere") == f"{prefix}elsewhere"


def _channels(subscription: Any) -> set[str]:
    """Of all messages so far: Redis answers the ping after them."""
    subscription.ping()
    channels = set()
    while (message := subscription.get_message(timeout=60))["type"] != "pong":
        if message["type"] == "pmessage":
            channels.add(message["channel"].decode())
    return channels
