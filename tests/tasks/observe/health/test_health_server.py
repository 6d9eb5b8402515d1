"""The pages of a worker for Prometheus and for probes."""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from queue import SimpleQueue

import msgspec
import pytest

from orcd.errors import InvalidRequest, Poisoned
from tasks.observe.health.health_server import HealthServer
from tests.conftest import wait_until
from tests.tasks.dispatch.byte_model import READY
from tests.tasks.observe.watched import CANARY, STATS, Watched, canary_job
from worker.settings import Settings

SETTINGS = Settings(device="cpu")
LIVE, WELL = ("/healthz", "/health/live"), ("/readyz", "/health/ready")


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def server(watched: Watched) -> Iterator[HealthServer]:
    server = HealthServer(watched.observer, SETTINGS, watched.observer.thread_died)
    yield server
    server.close()


def _get(server: HealthServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:  # its process was killed with this connection
        return 0, ""


def _become(server: HealthServer, paths: tuple[str, ...], *answer: object) -> None:
    """Wait until these pages answer so: the server is told ten times a second."""
    for path in paths:
        wait_until(lambda path=path: _get(server, path) == answer)  # type: ignore[misc]


def test_the_server_tells_metrics_life_and_readiness(watched: Watched, server: HealthServer) -> None:
    _become(server, WELL, 503, "503 Service Unavailable: the model is being loaded, 0 %\n")
    _become(server, LIVE, 200, "200 OK\n")
    watched.observer.ready(READY)
    _become(server, WELL, 200, "200 OK\n")
    watched.observer.stats(msgspec.structs.replace(STATS, healthy=False))
    unhealthy = "503 Service Unavailable: the engine is not healthy; the worker's log says why\n"
    _become(server, (*LIVE, *WELL), 503, unhealthy)
    watched.observer.stats(STATS)
    watched.observer.redis_failed()
    _become(server, WELL, 503, "503 Service Unavailable: Redis is away or refuses commands\n")
    _become(server, LIVE, 200, "200 OK\n")
    load = json.loads(_get(server, "/health/load?verbose")[1])
    assert (load["ready"], load["state"], load["running"], load["load"]) == (False, "ready", 3, 1.75)
    job = canary_job(Poisoned("given up"))
    watched.observer.job_ended(job, job.result)
    wait_until(lambda: 'version="' in _get(server, "/metrics")[1])
    wait_until(lambda: 'state="failed",version="0.2.0"} 1.0' in _get(server, "/metrics")[1])
    assert CANARY not in _get(server, "/metrics")[1]
    for path in ("/", "/metrics/../etc/passwd", "/healthz/"):
        assert _get(server, path) == (404, "404 Not Found\n")


def test_a_client_that_sends_nothing_keeps_nobody_waiting(
    server: HealthServer, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(("127.0.0.1", server.port)):
        _become(server, ("/healthz",), 200, "200 OK\n")
        server.close()
    assert capfd.readouterr() == ("", ""), "standard error is for log events"


def test_a_worker_that_has_lost_a_thread_is_neither_ready_nor_well(watched: Watched, server: HealthServer) -> None:
    watched.observer.ready(READY)
    watched.observer.thread_died("claimer", KeyError(CANARY))
    _become(server, (*LIVE, *WELL), 503, "503 Service Unavailable: a thread of the worker has died\n")
    assert CANARY not in watched.text


def test_a_child_that_was_killed_is_replaced_at_the_same_port(watched: Watched, server: HealthServer) -> None:
    _become(server, ("/healthz",), 200, "200 OK\n")
    assert server._child is not None
    os.kill(server._child._process.pid, signal.SIGKILL)
    _become(server, ("/healthz",), 200, "200 OK\n")
    wait_until(lambda: "orcd_ready" in _get(server, "/metrics")[1])
    assert [event["doing"] for event in watched.events()] == ["health"]


def test_the_end_of_its_own_thread_is_told(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    deaths: SimpleQueue[str] = SimpleQueue()
    monkeypatch.setattr(watched.observer, "health", lambda **_: 1 / 0)
    server = HealthServer(watched.observer, SETTINGS, lambda name, _: deaths.put(name))
    assert deaths.get(timeout=60) == "health server"
    server.close()


@pytest.mark.parametrize(("host", "problem"), [("127.0.0.1", "in use"), ("192.0.2.1", "Cannot assign")])
def test_an_address_that_cannot_be_had_is_named(
    watched: Watched, server: HealthServer, host: str, problem: str
) -> None:
    settings = Settings(device="cpu", metrics_host=host, metrics_port=server.port)
    with pytest.raises(InvalidRequest, match=rf"metrics_port: .*{server.port} of {host}.*{problem}.*ORCD_METRICS_PORT"):
        HealthServer(watched.observer, settings, watched.observer.thread_died)


def test_it_listens_where_it_is_told_to(watched: Watched) -> None:
    server = HealthServer(watched.observer, Settings(device="cpu", metrics_host="::1"), watched.observer.thread_died)
    try:
        with socket.create_connection(("::1", server.port), timeout=60):
            pass
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=60):
            pass
    finally:
        server.close()
