from __future__ import annotations

import json
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
import psutil
import redis

from orcd.events import Token
from orcd.store import schema
from orcd.store.job_store import JobStore
from tasks.local.redis_server import RedisServer
from tests.conftest import wait_until
from tests.orcd.gateway.gateway_process import GatewayProcess
from tests.orcd.job_writer import Writer, claimed

BODY = {"model": "demo", "prompt": "count", "stream": True}
NUM_EVENTS, AT_ONCE, TEXT = 16_000, 400, "x" * 1000
MOST_MIB = 8.0
"""Half of what is written."""


def begun_job(connection: redis.Redis, store: JobStore) -> Writer:
    """The job that was asked for last, begun."""
    wait_until(lambda: connection.zcard(schema.QUEUED) == 1)
    (job_id,) = connection.zrange(schema.QUEUED, 0, -1)
    writer = claimed(store, job_id.decode())
    writer.start()
    return writer


def ask_and_read_nothing(url: str) -> socket.socket:
    place = urlsplit(url)
    asked = socket.socket()
    asked.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    asked.connect((place.hostname, place.port))
    text = json.dumps(BODY)
    asked.sendall(f"POST /v1/completions HTTP/1.0\r\nhost: x\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode())
    return asked


def ask_and_read_all(url: str, connection: redis.Redis, store: JobStore) -> None:
    found: list[str] = []
    reading = threading.Thread(target=lambda: found.append(httpx.post(f"{url}/completions", json=BODY).text))
    reading.start()
    writer = begun_job(connection, store)
    writer.tokens(3)
    writer.end()
    reading.join()
    assert " 1 2 3" in found[0]
    assert found[0].endswith("data: [DONE]\n\n")


def idle_memory(process: psutil.Process) -> int:
    """The bytes of a process that has worked off what it had."""
    before, now = None, sum(process.cpu_times())
    while before != now:
        time.sleep(0.5)
        before, now = now, sum(process.cpu_times())
    return int(process.memory_info().rss)


def test_a_caller_who_reads_nothing_fills_no_memory_holds_up_nobody_and_has_everything_later(
    redis_server: RedisServer,
) -> None:
    with redis.Redis.from_url(redis_server.url) as connection, GatewayProcess(redis_server.url) as gateway:
        connection.config_set("client-output-buffer-limit", "pubsub 1048576 0 0")  # then only the log has the rest
        store = JobStore(connection, owner="w", model="demo", lease_ms=60_000, ttl_s=600)
        store.renew({}, is_ready=True)
        ask_and_read_all(gateway.url, connection, store)
        process = psutil.Process(gateway.process.pid)
        before = idle_memory(process)
        with ask_and_read_nothing(gateway.url) as slow:
            writer = begun_job(connection, store)
            for first in range(1, NUM_EVENTS, AT_ONCE):
                assert writer.write(*(Token(TEXT, number, [number]) for number in range(first, first + AT_ONCE)))
            writer.num_tokens = NUM_EVENTS
            writer.end()
            ask_and_read_all(gateway.url, connection, store)
            assert idle_memory(process) - before < MOST_MIB * 2**20
            with slow.makefile("rb") as answer:
                text = answer.read().decode()
        assert text.count(TEXT) == NUM_EVENTS
        assert text.endswith("data: [DONE]\n\n")
        assert idle_memory(process) - before < MOST_MIB * 2**20
