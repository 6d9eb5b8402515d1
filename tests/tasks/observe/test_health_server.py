"""The pages of a worker for Prometheus and for probes."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from queue import SimpleQueue

import msgspec
import pytest

from orcd.errors import InvalidRequest, Poisoned
from tasks.observe.health_server import HealthServer
from tests.tasks.dispatch.byte_model import READY
from tests.tasks.observe.watched import CANARY, STATS, Watched, canary_job


@pytest.fixture
def server(watched: Watched) -> Iterator[HealthServer]:
    server = HealthServer(watched.observer, 0, watched.observer.thread_died)
    yield server
    server.close()


def _get(server: HealthServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_server_tells_metrics_life_and_readiness(watched: Watched, server: HealthServer) -> None:
    assert _get(server, "/healthz") == (200, "200 OK\n")
    assert _get(server, "/readyz") == (503, "503 Service Unavailable\n")
    watched.observer.ready(READY)
    assert _get(server, "/readyz") == (200, "200 OK\n")
    watched.observer.stats(msgspec.structs.replace(STATS, healthy=False))
    for path in ("/healthz", "/readyz"):
        assert _get(server, path) == (503, "503 Service Unavailable\n")
    watched.observer.job_ended(canary_job(Poisoned("given up")))
    status, text = _get(server, "/metrics")
    assert status == 200
    assert 'orcd_jobs_total{state="failed"} 1.0' in text
    assert CANARY not in text
    for path in ("/", "/metrics/../etc/passwd", "/healthz/"):
        assert _get(server, path) == (404, "404 Not Found\n")


def test_a_client_that_sends_nothing_keeps_nobody_waiting(
    server: HealthServer, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(("127.0.0.1", server.port)):
        assert _get(server, "/healthz")[0] == 200
        server.close()
    assert capfd.readouterr() == ("", ""), "standard error is for log events"


def test_a_worker_that_has_lost_a_thread_is_neither_ready_nor_well(watched: Watched, server: HealthServer) -> None:
    watched.observer.ready(READY)
    watched.observer.thread_died("claimer", KeyError(CANARY))
    for path in ("/healthz", "/readyz"):
        assert _get(server, path) == (503, "503 Service Unavailable\n")
    assert CANARY not in watched.text


def test_the_end_of_its_own_thread_is_told(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    deaths: SimpleQueue[str] = SimpleQueue()
    monkeypatch.setattr("socketserver.BaseServer.serve_forever", lambda _: None)
    HealthServer(watched.observer, 0, lambda name, _: deaths.put(name))._server.server_close()
    assert deaths.get(timeout=5) == "health server"


def test_a_port_that_is_taken_is_named(watched: Watched, server: HealthServer) -> None:
    with pytest.raises(InvalidRequest, match=f"metrics_port: .*{server.port}.*ORCD_METRICS_PORT"):
        HealthServer(watched.observer, server.port, watched.observer.thread_died)
