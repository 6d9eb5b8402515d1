"""A worker and clients whose Redis has a new master, as its sentinels tell them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from orcd.client import Client
from orcd.events import End, Token
from tests.conftest import wait_until
from tests.orcd.redis_servers import MASTER, ConfiguredServer, sentinels
from tests.tasks.slow_engine import slow_engine
from tests.tasks.test_redis_kinds import stream_async
from tests.tasks.worker_process import WorkerProcess

LONG = {"prompt": "once", "max_tokens": 60, "temperature": 0, "ignore_eos": True}


@dataclass
class Failover:
    """A master and its replica, watched by sentinels."""

    master: ConfiguredServer
    replica: ConfiguredServer
    sentinel_ports: list[int]
    url: str

    def hasten(self) -> None:
        """Have the sentinels look for another master once this one is silent for a second."""
        for port in self.sentinel_ports:
            with redis.Redis(port=port) as sentinel:
                sentinel.sentinel_set(MASTER, "down-after-milliseconds", 1000)

    def wait_for_new_master(self) -> None:
        with redis.Redis(port=self.replica.port) as connection:
            wait_until(lambda: connection.info("replication")["role"] == "master")
        for port in self.sentinel_ports:  # each says so a moment later, and a new client believes the first it asks
            with redis.Redis(port=port, decode_responses=True) as sentinel:
                wait_until(lambda: sentinel.sentinel_get_master_addr_by_name(MASTER)[1] == self.replica.port)


@pytest.fixture
def failover(tmp_path: Path) -> Iterator[Failover]:
    with (
        ConfiguredServer(repl_diskless_sync_delay="0") as master,
        ConfiguredServer(replicaof=f"127.0.0.1 {master.port}") as replica,
        sentinels(master.port, tmp_path) as ports,
    ):
        with redis.Redis.from_url(replica.url) as connection:
            wait_until(lambda: connection.info("replication")["master_link_status"] == "up")
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        yield Failover(master, replica, ports, f"redis+sentinel://{hosts}/{MASTER}")


@pytest.mark.parametrize("is_planned", [False, True], ids=["master killed", "master demoted"])
def test_worker_and_clients_follow_to_the_new_master(
    failover: Failover, is_planned: bool, shallow_model: Path, tmp_path: Path
) -> None:
    variables = slow_engine(tmp_path)
    with WorkerProcess(failover.url, shallow_model, tmp_path, **variables) as worker, Client(failover.url) as client:
        expected = client.result(client.submit(**LONG), timeout=60)
        events = client.events(client.submit(**LONG), timeout=90)
        seen = [next(event for event in events if isinstance(event, Token))]
        with redis.Redis.from_url(failover.master.url) as master:
            assert master.wait(1, 30_000) == 1  # what the replica has not got by then may be lost
        if is_planned:
            with redis.Redis.from_url(failover.url.partition(",")[0].replace("redis+sentinel", "redis")) as sentinel:
                sentinel.sentinel_failover(MASTER)
        else:
            failover.hasten()
            failover.master.kill()
        seen += [event for event in events if isinstance(event, Token | End)]
        failover.wait_for_new_master()
        text = "".join(event.t for event in seen if isinstance(event, Token))
        assert (text, seen[-1].finish_reason) == (expected.text, "length")
        assert asyncio.run(stream_async(failover.url, LONG)) == expected.text
        assert client.result(client.submit(**LONG), timeout=60).text == expected.text
        assert worker.process.poll() is None
