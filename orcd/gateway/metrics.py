"""The figures of a gateway, for Prometheus."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
CLIENT_LEFT = 499
"""The status of a request whose caller left before there was one, as with other servers."""


class Metrics:
    """Counters, gauges and histograms of one gateway. Their names are an interface."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("orcd_gateway_requests", "Requests", ["path", "status"], registry=self._registry)
        self._in_flight = Gauge("orcd_gateway_in_flight", "Requests that are answered now", registry=self._registry)
        self._first_byte_s = self._histogram("orcd_gateway_first_byte_seconds", "Request to its answer's first byte")
        self._whole_s = self._histogram("orcd_gateway_request_seconds", "Request to its answer's end")

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ["path"], buckets=SECONDS, registry=self._registry)

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)

    def begin(self) -> RequestTimer:
        """A request has come; say how it goes on."""
        self._in_flight.inc()
        return RequestTimer(self)

    def ended(self, path: str, status: int, first_byte_s: float | None, whole_s: float) -> None:
        """A request has its answer, or nobody who waits for it."""
        self._in_flight.dec()
        self._requests.labels(path, str(status)).inc()
        if first_byte_s is not None:
            self._first_byte_s.labels(path).observe(first_byte_s)
        self._whole_s.labels(path).observe(whole_s)


class RequestTimer:
    """One request on its way."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._begin = time.monotonic()
        self._status = CLIENT_LEFT
        self._first_byte_s: float | None = None

    def answered(self, status: int) -> None:
        """Its status has been sent."""
        self._status = status

    def sent(self) -> None:
        """A part of its answer has been sent."""
        if self._first_byte_s is None:
            self._first_byte_s = time.monotonic() - self._begin

    def end(self, path: str) -> None:
        """``path`` is that of its route, without ids."""
        self._metrics.ended(path, self._status, self._first_byte_s, time.monotonic() - self._begin)
