"""F01: wherever a worker is in its conversation with Redis when that goes away, it hears that it is to stop.

Celery sends some messages again and again until Redis takes them, and saw nothing else meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from orcd.client import Client
from tasks.local.redis_server import free_port
from tests.chaos.system.tcp_proxy import TcpProxy
from tests.conftest import wait_until
from tests.tasks.worker_process import WorkerProcess

CUT: dict[str, Any] = {"listen": False, "cut": "all"}
FROZEN: dict[str, Any] = {"freeze": True}
MOMENTS = [
    pytest.param("PUBLISH\r\n$16\r\n/0.celery.pidbox", CUT, id="it asks other workers, cut"),
    pytest.param("celeryev/worker.online", CUT, id="it says that it is there, cut"),
    pytest.param("celeryev/worker.online", FROZEN, id="it says that it is there, frozen"),
    pytest.param("orcd:wake", CUT, id="it subscribes, cut"),
    pytest.param("celeryev/worker.heartbeat", FROZEN, id="it sends a heartbeat, frozen"),
]


@pytest.fixture
def proxy(redis_url: str) -> Iterator[TcpProxy]:
    """Between the worker and Redis."""
    with TcpProxy(free_port(), urlsplit(redis_url).port or 0) as proxy:
        yield proxy


def _start(proxy: TcpProxy, model: Path, folder: Path, moment: str, then: dict[str, Any]) -> WorkerProcess:
    """A worker for which Redis has just gone away, when it sent that."""
    proxy.tell(trigger=moment, then=then)
    worker = WorkerProcess(f"redis://127.0.0.1:{proxy.port}/0", model, folder, by_celery=True)
    worker.wait_for("ready")
    wait_until(proxy.tell)
    return worker


@pytest.mark.parametrize(("moment", "then"), MOMENTS)
def test_a_worker_can_be_stopped_whatever_it_waits_for(
    proxy: TcpProxy, shallow_model: Path, tmp_path: Path, moment: str, then: dict[str, Any]
) -> None:
    worker = _start(proxy, shallow_model, tmp_path, moment, then)
    time.sleep(0.2)
    worker.process.terminate()
    assert worker.process.wait(60) == 0
    assert [event for event in worker.events("error") if event["level"] == "error"] == []


@pytest.mark.parametrize(("moment", "then"), MOMENTS[:3])
def test_a_worker_takes_jobs_once_redis_is_back_whatever_it_waited_for(
    proxy: TcpProxy, redis_url: str, shallow_model: Path, tmp_path: Path, moment: str, then: dict[str, Any]
) -> None:
    with _start(proxy, shallow_model, tmp_path, moment, then), Client(redis_url) as client:
        time.sleep(0.5)
        proxy.tell(listen=True, freeze=False)
        assert client.result(client.submit(prompt="x", max_tokens=2), timeout=60).state == "succeeded"
