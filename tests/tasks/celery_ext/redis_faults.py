"""Ways in which a Redis that runs refuses commands or drops connections, staged on a real server."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import redis

from orcd.client import Client
from tasks.local.redis_server import RedisServer
from tests.conftest import wait_until
from tests.tasks.worker_process import WorkerProcess

SHORT = {"prompt": "old pond", "max_tokens": 4, "ignore_eos": True, "temperature": 0.0}


@dataclass(frozen=True, slots=True)
class Fault:
    """``error`` is what a client that writes is told meanwhile; None: nothing, as its command is only late or cut."""

    begin: Callable[[redis.Redis], object]
    end: Callable[[redis.Redis], object]
    error: str | None


def _configure(**options: str | int) -> Callable[[redis.Redis], object]:
    def configure(connection: redis.Redis) -> None:
        for name, value in options.items():
            connection.config_set(name.replace("_", "-"), value)

    return configure


def _fail_to_save(connection: redis.Redis) -> None:
    shutil.rmtree(connection.config_get("dir")["dir"], ignore_errors=True)
    connection.config_set("save", "3600 1")
    connection.bgsave()


def _error_of_a_write(connection: redis.Redis) -> str:
    try:
        connection.hset("some", "field", "value")
    except redis.RedisError as error:
        return str(error)
    return ""


def _cut(connection: redis.Redis) -> None:
    for kind in ("normal", "pubsub"):
        connection.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


def _cut_often(connection: redis.Redis) -> None:
    for _ in range(10):
        _cut(connection)
        time.sleep(0.15)


def _nothing(connection: redis.Redis) -> None:
    """It is over by itself."""


FAULTS = {
    "full": Fault(_configure(maxmemory=1), _configure(maxmemory=0), "used memory > 'maxmemory'"),
    "without-its-replicas": Fault(
        _configure(min_replicas_to_write=1), _configure(min_replicas_to_write=0), "NOREPLICAS"
    ),
    "read-only": Fault(
        lambda connection: connection.replicaof("127.0.0.1", 1),
        lambda connection: connection.replicaof("NO", "ONE"),
        "read only replica",
    ),
    "replica-without-master": Fault(
        lambda connection: [
            connection.config_set("replica-serve-stale-data", "no"),
            connection.replicaof("127.0.0.1", 1),
        ],
        lambda connection: [
            connection.replicaof("NO", "ONE"),
            connection.config_set("replica-serve-stale-data", "yes"),
        ],
        "MASTERDOWN|read only replica",
    ),
    "disk-full": Fault(_fail_to_save, _configure(save=""), "MISCONF"),
    "scripts-flushed": Fault(lambda connection: connection.script_flush(), _nothing, None),
    "connections-cut": Fault(_cut_often, _nothing, None),
    "paused": Fault(lambda connection: connection.client_pause(7000), _nothing, None),
}
SECONDS = 3.0


@contextmanager
def staged(fault: Fault, connection: redis.Redis) -> Iterator[None]:
    """The fault begins, and is seen to be there; it ends with the block."""
    fault.begin(connection)
    try:
        if fault.error is not None:
            # Saving fails in the background.
            wait_until(lambda: re.search(fault.error or "", _error_of_a_write(connection)))
        yield
    finally:
        fault.end(connection)


def assert_outlived(worker: WorkerProcess) -> None:
    """The worker is there after the fault, and takes jobs again."""
    assert worker.process.poll() is None, worker.events("celery")
    with Client(worker.redis_url) as client:
        assert client.result(client.submit(**SHORT), timeout=60).state == "succeeded"


class LoadingServer(RedisServer):
    """Loads ``NUM_KEYS`` keys when it starts again, for 40 s or until it is hurried, and answers LOADING meanwhile."""

    NUM_KEYS = 100_000

    def __init__(self) -> None:
        super().__init__(appendonly=True)

    def _command(self, port: int) -> list[str]:
        return [*super()._command(port), "--key-load-delay", "400"]

    def hurry(self) -> None:
        """Have it load the rest at once."""
        with redis.Redis.from_url(self.url) as connection:
            connection.config_set("key-load-delay", 0)
