"""A real worker sends spans of jobs, whose trace context comes with Celery's message or the client's request."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from orcd.client import Client
from tasks.app import create_app
from tests.conftest import wait_until
from tests.tasks.worker_process import WorkerProcess
from worker.settings import Settings

CANARY = "Kanarienvogel"
TRACES = {"client": "1" * 32, "celery": "2" * 32}


class Collector(ThreadingHTTPServer):
    """Takes what an OTLP exporter sends over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []
        self.bodies: list[bytes] = []


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_spans_of_jobs_belong_to_their_senders_traces(
    redis_url: str, shallow_model: Path, tmp_path: Path, collector: Collector
) -> None:
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    parents = {name: f"00-{trace}-{'b' * 16}-01" for name, trace in TRACES.items()}
    with WorkerProcess(redis_url, shallow_model, tmp_path, **variables) as worker:
        with Client(redis_url) as client, create_app(Settings(redis_url=redis_url)) as app:
            client.result(client.submit(prompt=CANARY, max_tokens=2, traceparent=parents["client"]), timeout=60)
            headers = {"traceparent": parents["celery"]}
            app.send_task("orcd.generate", kwargs={"prompt": CANARY, "max_tokens": 2}, headers=headers).get(timeout=60)
        wait_until(lambda: len(collector.spans) == 8)
        assert CANARY not in worker.log_path.read_text()
    for trace in TRACES.values():
        names = sorted(span.name for span in collector.spans if span.trace_id.hex() == trace)
        assert names == ["decode", "prefill", "queue", "text_completion haiku-q4_k_m"]
    assert not [body for body in collector.bodies if CANARY.encode() in body]
