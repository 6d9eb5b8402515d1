"""What a worker shows of itself: log events, metrics and health."""

from __future__ import annotations

import io
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tasks.generation import Generation
from tasks.job import Claim
from tasks.observe import MetricsServer, Observer
from tasks.prompt import Prompt
from tasks.request import parse
from tests.tasks.byte_model import ENCODER, END_ID, READY
from worker import contract
from worker.errors import InvalidRequest, OrcdError, Poisoned
from worker.log import EventLog

STATS = contract.Stats(
    running=3,
    waiting=4,
    kv_blocks_used=5,
    kv_blocks_total=6,
    steps=7,
    prompt_tokens=8,
    output_tokens=9,
    prefix_hit_tokens=10,
    preemptions=11,
    memory_bytes=12,
)
CANARY = "Kanarienvogel"


class Watched:
    """An observer with what it has logged."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self.observer = Observer(EventLog("json", "worker-1", self._stream), "worker-1", "demo")

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    def events(self) -> list[dict[str, Any]]:
        """What was logged since the last call, without time and worker."""
        events = [json.loads(line) for line in self.text.splitlines()]
        self._stream.seek(0)
        self._stream.truncate()
        for event in events:
            del event["time"]
            assert event.pop("worker_id") == "worker-1"
        return events

    def sample(self, name: str, **labels: str) -> float | None:
        return self.observer.registry.get_sample_value(name, labels)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def _generation(prompt: Prompt | OrcdError | None = None) -> Generation:
    request = parse({"prompt": CANARY})
    claim = Claim(
        job_id="j",
        request=request,
        epoch=1,
        attempt=2,
        created_ms=1000,
        started_ms=1250,
        first_token_ms=1300,
        claimed_ms=1250,
        deadline_ms=0,
        cancelled=False,
        log=(),
    )
    return Generation(claim, prompt or ENCODER.encode(request, READY), "demo")


def test_a_load_is_told_from_start_to_ready(watched: Watched) -> None:
    observer = watched.observer
    observer.startup("cpu")
    for percent in (0, 25, 50, 75, 100):
        observer.load_progress(contract.Load(percent, percent * 10, 1000, 40 * (100 - percent)))
    assert not observer.is_healthy
    observer.ready(READY)
    assert observer.is_healthy
    observer.shutdown()
    events = watched.events()
    assert [event["event"] for event in events] == [
        *("startup", "model_load_start"),
        *["model_load_progress"] * 5,
        *("model_load_complete", "ready", "shutdown"),
    ]
    assert events[3] == {
        "level": "info",
        "event": "model_load_progress",
        "percent": 25,
        "bytes": 250,
        "total_bytes": 1000,
        "remaining_ms": 3000,
    }
    complete, ready = events[7:9]
    assert (complete["load_ms"], complete["memory_bytes"], complete["device"]) == (12, 4096, "cpu")
    assert (ready["engine_pid"], ready["max_sequence_tokens"]) == (4321, 64)


@hypothesis_settings(derandomize=True, max_examples=50)
@given(percents=st.lists(st.integers(0, 99), max_size=100).map(sorted))
def test_progress_is_logged_every_few_percent_and_always_at_the_end(percents: list[int]) -> None:
    watched = Watched()
    for percent in [*percents, 100]:
        watched.observer.load_progress(contract.Load(percent, percent, 100))
    logged = [event["percent"] for event in watched.events()]
    assert logged[-1] == 100
    assert len(logged) <= 21
    assert {percent // 5 for percent in percents} <= {percent // 5 for percent in logged}


def test_a_job_is_told_with_its_figures_and_no_text(watched: Watched) -> None:
    generation = _generation()
    watched.observer.execute_start(generation)
    generation.add()
    generation.take(contract.TokenOutput("j", 0, (*b"frog", END_ID), "stop"))
    watched.observer.execute_end(generation)
    assert CANARY not in watched.text
    assert "frog" not in watched.text
    start, end = watched.events()
    assert start == {
        "level": "info",
        "event": "execute_start",
        "job_id": "j",
        "attempt": 2,
        "tokens_in": len(CANARY),
        "queue_ms": 250,
    }
    assert end.pop("decode_ms") >= 0
    assert end == {
        "level": "info",
        "event": "execute_end",
        "job_id": "j",
        "state": "succeeded",
        "tokens_in": len(CANARY),
        "tokens_out": 5,
        "queue_ms": 250,
        "ttft_ms": 50,
        "text_sha256": generation.text_sha256,
    }
    assert len(generation.text_sha256) == 64
    assert watched.sample("orcd_jobs_total", state="succeeded") == 1
    assert watched.sample("orcd_tokens_total", direction="in") == len(CANARY)
    assert watched.sample("orcd_tokens_total", direction="out") == 5
    assert watched.sample("orcd_queue_seconds_sum") == 0.25
    assert watched.sample("orcd_first_token_seconds_sum") == 0.05
    assert watched.sample("orcd_decode_seconds_count") == 1


def test_a_failed_job_is_counted_by_its_state_and_told_with_its_code(watched: Watched) -> None:
    watched.observer.execute_end(_generation(Poisoned(f"given up on {CANARY}")))
    assert CANARY not in watched.text
    (end,) = watched.events()
    assert end == {
        "level": "warning",
        "event": "execute_end",
        "job_id": "j",
        "state": "failed",
        "code": "POISONED",
        "tokens_out": 0,
    }
    assert watched.sample("orcd_jobs_total", state="failed") == 1
    assert watched.sample("orcd_queue_seconds_count") == 0


def test_an_engine_that_is_lost_is_an_error_and_takes_the_readiness_with_it(watched: Watched) -> None:
    observer = watched.observer
    observer.ready(READY)
    watched.events()
    observer.engine_hung(121.234)
    observer.engine_exited(-9)
    assert not observer.is_healthy
    hung, exited = watched.events()
    assert (hung["level"], hung["code"], hung["silent_s"]) == ("error", "ENGINE_LOST", 121.2)
    assert (exited["level"], exited["code"], exited["exit_code"]) == ("error", "ENGINE_LOST", -9)
    assert watched.sample("orcd_engine_exits_total") == 1
    observer.ready(READY)
    assert observer.is_healthy


def test_an_error_of_the_worker_is_told_with_code_and_message(watched: Watched) -> None:
    watched.observer.error(InvalidRequest("ORCD_DEVICE must be\ncpu or cuda:N"))
    (event,) = watched.events()
    assert (event["level"], event["code"], event["message"]) == (
        "error",
        "INVALID_REQUEST",
        "ORCD_DEVICE must be cpu or cuda:N",
    )


def test_trouble_that_goes_on_is_told_once_and_without_the_errors_text(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(100):
        watched.observer.trouble("append", ConnectionError(CANARY))
    watched.observer.trouble("upkeep", TimeoutError(CANARY))
    assert CANARY not in watched.text
    events = watched.events()
    assert [(event["doing"], event["cause"]) for event in events] == [
        ("append", "ConnectionError"),
        ("upkeep", "TimeoutError"),
    ]
    assert {event["level"] for event in events} == {"warning"}
    monkeypatch.setattr("tasks.observe.TROUBLE_EVERY_S", 0.0)
    watched.observer.trouble("append", ConnectionError())
    assert len(watched.events()) == 1


def test_the_heartbeat_says_what_the_engine_does(watched: Watched) -> None:
    observer = watched.observer
    idle = {"model": "demo", "ready": 0, "jobs": 0, "running": 0, "waiting": 0, "output_tokens": 0}
    assert observer.gauges(0) == idle
    observer.ready(READY)
    observer.stats(STATS)
    busy = {"model": "demo", "ready": 1, "jobs": 7, "running": 3, "waiting": 4, "output_tokens": 9}
    assert observer.gauges(7) == busy
    assert watched.sample("orcd_jobs_in_hand") == 7
    observer.stats(msgspec.structs.replace(STATS, healthy=False))
    assert observer.gauges(7)["ready"] == 0


def test_an_engine_that_is_unwell_is_told_once_and_takes_the_readiness_with_it(watched: Watched) -> None:
    observer, unwell = watched.observer, msgspec.structs.replace(STATS, healthy=False)
    observer.stats(unwell)  # the check at the load comes before Ready
    observer.ready(READY)
    assert not observer.is_healthy
    observer.stats(unwell)
    assert [event["event"] for event in watched.events() if event["level"] == "error"] == ["unhealthy"]
    assert watched.sample("orcd_engine_healthy") == 0
    observer.stats(STATS)
    assert observer.is_healthy
    assert watched.sample("orcd_engine_healthy") == 1
    observer.stats(unwell)
    observer.engine_exited(1)
    assert watched.sample("orcd_engine_healthy") == 0
    observer.ready(READY)  # of a new process, of which nothing bad is known
    assert observer.is_healthy
    assert watched.sample("orcd_engine_healthy") == 1


def test_every_figure_of_the_engine_is_a_metric(watched: Watched) -> None:
    watched.observer.stats(STATS)
    for name in contract.Stats.__struct_fields__:
        assert watched.sample(f"orcd_engine_{name}") == float(getattr(STATS, name)), name


@pytest.fixture
def server(watched: Watched) -> Iterator[MetricsServer]:
    server = MetricsServer(watched.observer, 0)
    yield server
    server.close()


def _get(server: MetricsServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_server_tells_metrics_life_and_readiness(watched: Watched, server: MetricsServer) -> None:
    assert _get(server, "/healthz") == (200, "200 OK\n")
    assert _get(server, "/readyz") == (503, "503 Service Unavailable\n")
    watched.observer.ready(READY)
    assert _get(server, "/readyz") == (200, "200 OK\n")
    watched.observer.stats(msgspec.structs.replace(STATS, healthy=False))
    for path in ("/healthz", "/readyz"):
        assert _get(server, path) == (503, "503 Service Unavailable\n")
    watched.observer.execute_end(_generation(Poisoned("given up")))
    status, text = _get(server, "/metrics")
    assert status == 200
    assert 'orcd_jobs_total{state="failed"} 1.0' in text
    assert CANARY not in text
    for path in ("/", "/metrics/../etc/passwd", "/healthz/"):
        assert _get(server, path) == (404, "404 Not Found\n")


def test_a_visitor_that_says_nothing_keeps_nobody_waiting(
    server: MetricsServer, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(("127.0.0.1", server.port)):
        assert _get(server, "/healthz")[0] == 200
        server.close()
    assert capfd.readouterr() == ("", ""), "standard error is for log events"


def test_a_port_that_is_taken_is_named(watched: Watched, server: MetricsServer) -> None:
    with pytest.raises(InvalidRequest, match=f"metrics_port: .*{server.port}.*ORCD_METRICS_PORT"):
        MetricsServer(watched.observer, server.port)
