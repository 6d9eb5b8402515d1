"""Engines on a device that is waited for, and on one that runs behind the host, which may draw late."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest

from tests.worker.engine.context_model import ContextModel
from tests.worker.engine.cuda.late_device import LateModel
from tests.worker.engine.generation import engine
from worker.engine.engine import Engine

MACHINES = {"waiting": False, "ahead": True, "drawing late": True}
"""Whether they are on a device that runs behind the host."""


@pytest.fixture(scope="module")
def no_wait_is_long() -> Iterator[None]:
    """So that steps run as far ahead as ever they do, however long this machine takes for them."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("worker.engine.cuda.runner.LONG_WAIT_S", math.inf)
        yield


@pytest.fixture(scope="module", autouse=True)
def nobody_looks_ahead() -> Iterator[None]:
    """So that sequences are preempted, of which hardly one would be: engines of tests have outputs of few blocks."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("worker.engine.cache.sequence_cache.LEAST_FORESEEN", 0)
        monkeypatch.setattr("worker.engine.cache.sequence_cache.OUTPUTS_REMEMBERED", math.inf)
        yield


@pytest.fixture(params=MACHINES)
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    if request.param == "drawing late":
        monkeypatch.setattr("worker.engine.scheduler.MANY", 1)

    def make_engine(model: ContextModel | None = None, **options: object) -> Engine:
        model = model or ContextModel()
        return engine(LateModel(model) if MACHINES[request.param] else model, **options)

    return make_engine
