"""How many requests of each kind a gateway has, and how long they take; for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Sequence

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_ENDED_EARLY = "499"
"""The status of a request whose caller left before there was one."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # a time beside each counter, which nobody reads


class Metrics:
    """Counts the requests that go through it. ``routes`` have the paths that are told apart; others are ``other``."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._paths = {route.endpoint: route.path for route in routes}
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "orcd_gateway_requests",
            "requests that have ended, by the status of their answers",
            ("path", "method", "status"),
            registry=self._registry,
        )
        self._running = Gauge(
            "orcd_gateway_requests_running", "requests that are being answered", registry=self._registry
        )
        self._first_byte = Histogram(
            "orcd_gateway_first_byte_seconds",
            "until the first byte of an answer's body, which of a stream comes with its first token",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._whole = Histogram(
            "orcd_gateway_request_seconds", "until all is sent", ("path",), buckets=_SECONDS, registry=self._registry
        )

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to ``app``."""
        began = time.monotonic()
        status, first_s = _ENDED_EARLY, 0.0

        async def watch(message: Message) -> None:
            nonlocal status, first_s
            if message["type"] == "http.response.start":
                status = str(message["status"])
            elif not first_s:
                first_s = time.monotonic() - began
            await send(message)

        self._running.inc()
        try:
            await app(scope, receive, watch)
        finally:
            self._running.dec()
            endpoint = scope.get("endpoint")  # the router has put it there
            path = self._paths.get(endpoint, "other") if endpoint else "other"
            self._requests.labels(path, _method(scope), status).inc()
            self._whole.labels(path).observe(time.monotonic() - began)
            if first_s:
                self._first_byte.labels(path).observe(first_s)

    async def show(self, _request: Request) -> Response:
        """The page for Prometheus; it needs no key, and has no name that a caller made up."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


def _method(scope: Scope) -> str:
    method = scope["method"]
    return method if method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS") else "other"
