"""What each path of the health server answers, from what the worker told last."""

from __future__ import annotations

import time
from typing import NamedTuple

import msgspec

from tasks.observe.health.health_snapshot import HealthSnapshot

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SILENT_S = 3.0
"""A worker that has told nothing for so long is not ready: it is stopped, or something keeps its interpreter busy."""
DEAD_S = 30.0
"""And then it is not live."""


class Page(NamedTuple):
    """An answer over HTTP."""

    status: int
    content_type: str
    body: bytes


class HealthPages:
    """The pages of one worker. ``tell`` is called by one thread, ``page`` by any."""

    def __init__(self) -> None:
        self._snapshot: HealthSnapshot | None = None
        self._told_at = time.monotonic()
        self._metrics = b""

    def tell(self, snapshot: HealthSnapshot) -> None:
        """The worker has told how it is."""
        if snapshot.metrics is not None:
            self._metrics = snapshot.metrics
        self._snapshot, self._told_at = snapshot, time.monotonic()

    def page(self, path: str) -> Page:
        """The answer for a path without its query."""
        match path:
            case "/metrics":
                return Page(200, METRICS_TYPE, self._metrics)
            case "/health/live" | "/healthz":
                return self._outcome(self._problem_of_life())
            case "/health/ready" | "/readyz":
                return self._outcome(self._problem_of_readiness())
            case "/health/load":
                return self._load()
        return _text(404, "Not Found")

    def _problem_of_life(self) -> str:
        silent_s = time.monotonic() - self._told_at
        if silent_s > DEAD_S:
            return f"the worker has been silent for {silent_s:.0f} s"
        return "" if self._snapshot is None or self._snapshot.is_live else self._snapshot.reason

    def _problem_of_readiness(self) -> str:
        silent_s = time.monotonic() - self._told_at
        if silent_s > SILENT_S:
            return f"the worker has been silent for {silent_s:.0f} s"
        return "the worker starts" if self._snapshot is None else self._snapshot.reason

    def _outcome(self, problem: str) -> Page:
        return _text(503, f"Service Unavailable: {problem}") if problem else _text(200, "OK")

    def _load(self) -> Page:
        problem = self._problem_of_readiness()
        told = {"ready": not problem, "reason": problem}
        if self._snapshot is not None:
            told |= {"state": self._snapshot.state, **msgspec.structs.asdict(self._snapshot.load)}
        return Page(200, "application/json", msgspec.json.encode(told) + b"\n")


def _text(status: int, words: str) -> Page:
    return Page(status, "text/plain; charset=utf-8", f"{status} {words}\n".encode())
