"""HTTP for those who watch over a worker: its metrics, whether it is healthy, whether it takes jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from orcd.errors import InvalidRequest
from tasks.observe.observer import Observer
from tasks.supervised_thread import OnDeath, SupervisedThread


class _Server(ThreadingMixIn, WSGIServer):
    """One thread a client, so that one which sends nothing keeps no other waiting."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client went away; the standard library would write a traceback among the log events."""


class _QuietHandler(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests of probes are no log events."""


class HealthServer:
    """``/metrics`` for Prometheus, ``/healthz`` (alive and well), ``/readyz`` (takes jobs), on the loopback interface.

    ``on_death`` is called if its thread dies. Raises `InvalidRequest` if the port cannot be had.
    """

    def __init__(self, observer: Observer, port: int, on_death: OnDeath) -> None:
        self._observer = observer
        self._metrics = make_wsgi_app(observer.metrics.registry)
        try:
            self._server = make_server("127.0.0.1", port, self._respond, _Server, _QuietHandler)
        except OSError:
            raise InvalidRequest(f"metrics_port: cannot use port {port}; set ORCD_METRICS_PORT to a free one") from None
        self.port: int = self._server.server_port
        self._thread = SupervisedThread("health server", self._server.serve_forever, on_death)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._thread.stop()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _respond(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environ, start_response)
            return answer
        found = path in ("/healthz", "/readyz")
        well = self._observer.is_ready if path == "/readyz" else not self._observer.is_unhealthy
        status = "404 Not Found" if not found else "200 OK" if well else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain")])
        return [status.encode() + b"\n"]
