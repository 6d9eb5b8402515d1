"""What the outside may see of a worker: log events, Prometheus metrics, health. No text of any prompt or answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app

from tasks.generation import Generation
from worker import contract
from worker.errors import InvalidRequest, OrcdError, places
from worker.log import EventLog

TROUBLE_EVERY_S = 5.0
LOAD_STEP_PERCENT = 5
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Observer:
    """One worker's events and figures. Called by the desk; read by the metrics server."""

    def __init__(self, log: EventLog, worker_id: str, model: str) -> None:
        self.worker_id = worker_id
        self.model = model
        self._log = log
        self._limits: contract.Ready | None = None
        self._stats: contract.Stats | None = None
        self._load_percent = -LOAD_STEP_PERCENT
        self._last_trouble: dict[str, float] = {}
        self.registry = CollectorRegistry()
        self._jobs = Counter("orcd_jobs", "Jobs ended here", ["state"], registry=self.registry)
        self._tokens = Counter("orcd_tokens", "Tokens of ended jobs", ["direction"], registry=self.registry)
        self._restarts = Counter("orcd_engine_exits", "Times the engine process ended", registry=self.registry)
        self._queue_s = self._histogram("orcd_queue_seconds", "Submission to first claim")
        self._ttft_s = self._histogram("orcd_first_token_seconds", "First claim to first token")
        self._decode_s = self._histogram("orcd_decode_seconds", "First token to last")
        self._in_hand = Gauge("orcd_jobs_in_hand", "Jobs this worker has claimed", registry=self.registry)
        self._engine = {
            name: Gauge(f"orcd_engine_{name}", f"Engine: {name.replace('_', ' ')}", registry=self.registry)
            for name in contract.Stats.__struct_fields__
        }

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=SECONDS, registry=self.registry)

    @property
    def is_healthy(self) -> bool:
        """Whether the engine is loaded and does not say that it is unwell; while it is not, no job is taken."""
        return self._limits is not None and not self.is_unwell

    @property
    def is_unwell(self) -> bool:
        """Whether the engine runs and says that something is wrong with it."""
        return self._stats is not None and not self._stats.healthy

    def startup(self, device: str) -> None:
        """The worker begins."""
        self._log.event("startup", device=device)
        self._log.event("model_load_start", device=device)

    def load_progress(self, load: contract.Load) -> None:
        """The engine has read some more of the model; logged every few percent."""
        if load.percent < 100 and load.percent // LOAD_STEP_PERCENT == self._load_percent // LOAD_STEP_PERCENT:
            return
        self._load_percent = load.percent
        self._log.event(
            "model_load_progress",
            percent=load.percent,
            bytes=load.num_bytes,
            total_bytes=load.total_bytes,
            remaining_ms=load.remaining_ms,
        )

    def ready(self, ready: contract.Ready) -> None:
        """The engine takes requests."""
        self._limits = ready
        self._engine["healthy"].set(self.is_healthy)
        self._log.event(
            "model_load_complete", load_ms=ready.load_ms, memory_bytes=ready.memory_bytes, device=ready.device
        )
        self._log.event("ready", engine_pid=ready.pid, max_sequence_tokens=ready.max_sequence_tokens)

    def execute_start(self, generation: Generation) -> None:
        """A job was claimed."""
        claim = generation.claim
        self._log.event(
            "execute_start",
            job_id=generation.job_id,
            attempt=claim.attempt,
            tokens_in=generation.num_tokens_in,
            queue_ms=claim.started_ms - claim.created_ms,
        )

    def execute_end(self, generation: Generation) -> None:
        """A job reached its terminal event here."""
        result = generation.result
        self._jobs.labels(result.state).inc()
        self._tokens.labels("in").inc(generation.num_tokens_in)
        self._tokens.labels("out").inc(generation.num_tokens_out)
        if result.error is not None:
            self._log.event(
                "execute_end",
                level="warning",
                job_id=generation.job_id,
                state=result.state,
                code=result.error.code,
                tokens_out=generation.num_tokens_out,
            )
            return
        for histogram, milliseconds in (
            (self._queue_s, result.queue_ms),
            (self._ttft_s, result.ttft_ms),
            (self._decode_s, result.decode_ms),
        ):
            histogram.observe(milliseconds / 1000)
        self._log.event(
            "execute_end",
            job_id=generation.job_id,
            state=result.state,
            tokens_in=result.tokens_in,
            tokens_out=result.tokens_out,
            queue_ms=result.queue_ms,
            ttft_ms=result.ttft_ms,
            decode_ms=result.decode_ms,
            text_sha256=generation.text_sha256,
        )

    def engine_exited(self, code: int) -> None:
        """The engine process ended without being asked to."""
        self._limits = self._stats = None
        self._engine["healthy"].set(0)
        self._restarts.inc()
        self._log.event("error", level="error", code="ENGINE_LOST", exit_code=code)

    def engine_hung(self, silent_s: float) -> None:
        """The engine has work and says nothing; it will be killed."""
        self._log.event("error", level="error", code="ENGINE_LOST", silent_s=round(silent_s, 1))

    def error(self, error: OrcdError) -> None:
        """An error that concerns the whole worker."""
        self._log.event("error", level="error", code=error.code, message=error.message)

    def crashed(self, error: Exception) -> None:
        """A bug of ours; its text stays unsaid, as it may hold what users wrote."""
        self._log.event("error", level="error", code="INTERNAL", cause=type(error).__name__, where=places(error))

    def trouble(self, doing: str, error: Exception) -> None:
        """Redis or the broker is away; said once in a while, as it is tried again all the time."""
        now = time.monotonic()
        if now - self._last_trouble.get(doing, -TROUBLE_EVERY_S) >= TROUBLE_EVERY_S:
            self._last_trouble[doing] = now
            self._log.event("error", level="warning", code="INTERNAL", doing=doing, cause=type(error).__name__)

    def shutdown(self) -> None:
        """The worker ends."""
        self._log.event("shutdown")

    def stats(self, stats: contract.Stats) -> None:
        """Figures of the engine, about once a second."""
        if not stats.healthy and not self.is_unwell:
            self._log.event("unhealthy", level="error")  # the engine's own log says what it found
        self._stats = stats
        for name, gauge in self._engine.items():
            gauge.set(getattr(stats, name))

    def gauges(self, num_jobs: int) -> dict[str, int | str]:
        """What goes into the worker's heartbeat."""
        self._in_hand.set(num_jobs)
        stats = self._stats
        return {
            "model": self.model,
            "ready": int(self.is_healthy),
            "jobs": num_jobs,
            "running": stats.running if stats else 0,
            "waiting": stats.waiting if stats else 0,
            "output_tokens": stats.output_tokens if stats else 0,
        }


class _Server(ThreadingMixIn, WSGIServer):
    """One thread a visitor, so that one who says nothing keeps nobody waiting."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A visitor went away; the standard library would write a traceback among the log events."""


class _QuietHandler(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        return


class MetricsServer:
    """``/metrics`` for Prometheus, ``/healthz`` (alive and well), ``/readyz`` (takes jobs), on the loopback interface.

    Raises `InvalidRequest` if the port cannot be had.
    """

    def __init__(self, observer: Observer, port: int) -> None:
        self._observer = observer
        self._metrics = make_wsgi_app(observer.registry)
        try:
            self._server = make_server("127.0.0.1", port, self._respond, _Server, _QuietHandler)
        except OSError:
            raise InvalidRequest(f"metrics_port: cannot use port {port}; set ORCD_METRICS_PORT to a free one") from None
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _respond(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environ, start_response)
            return answer
        found = path in ("/healthz", "/readyz")
        well = self._observer.is_healthy if path == "/readyz" else not self._observer.is_unwell
        status = "404 Not Found" if not found else "200 OK" if well else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain")])
        return [status.encode() + b"\n"]
