"""What each path answers, from what the worker told last."""

from __future__ import annotations

import time

import msgspec
import pytest

from tasks.observe.health.health_pages import DEAD_S, SILENT_S, HealthPages
from tasks.observe.health.health_snapshot import HealthSnapshot, Load

WELL = HealthSnapshot(True, "ready", "", Load(running=3, max_sequences=4, load=0.75), b"a 1\n")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    moment = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: moment[0])
    return moment


def status(pages: HealthPages, path: str) -> int:
    return pages.page(path).status


def test_a_worker_that_has_told_nothing_yet_lives_and_is_not_ready(now: list[float]) -> None:
    pages = HealthPages()
    assert (status(pages, "/health/live"), status(pages, "/health/ready")) == (200, 503)
    assert msgspec.json.decode(pages.page("/health/load").body) == {"ready": False, "reason": "the worker starts"}
    assert pages.page("/metrics").body == b""


def test_a_worker_that_falls_silent_is_not_ready_and_then_not_live(now: list[float]) -> None:
    pages = HealthPages()
    pages.tell(WELL)
    assert (status(pages, "/health/live"), status(pages, "/health/ready")) == (200, 200)
    now[0] += SILENT_S + 0.1
    assert (status(pages, "/health/live"), status(pages, "/health/ready")) == (200, 503)
    assert pages.page("/health/ready").body == b"503 Service Unavailable: the worker has been silent for 3 s\n"
    now[0] += DEAD_S
    assert (status(pages, "/health/live"), status(pages, "/health/ready")) == (503, 503)


def test_the_last_metrics_stay_until_others_come() -> None:
    pages = HealthPages()
    pages.tell(WELL)
    pages.tell(msgspec.structs.replace(WELL, metrics=None))
    assert pages.page("/metrics").body == b"a 1\n"


def test_the_load_is_json() -> None:
    pages = HealthPages()
    pages.tell(WELL)
    page = pages.page("/health/load")
    told = msgspec.json.decode(page.body)
    assert page.content_type == "application/json"
    assert (told["ready"], told["state"], told["running"], told["load"]) == (True, "ready", 3, 0.75)
