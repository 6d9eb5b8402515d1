"""Engines on a device that is waited for, and on one that runs behind the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest

from tests.worker.engine.context_model import ContextModel
from tests.worker.engine.cuda.late_device import LateModel
from tests.worker.engine.generation import engine
from worker.engine.engine import Engine

MACHINES: dict[str, Callable[[ContextModel], object]] = {"waiting": lambda model: model, "ahead": LateModel}


@pytest.fixture(scope="module")
def no_wait_is_long() -> Iterator[None]:
    """So that steps run as far ahead as ever they do, however long this machine takes for them."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("worker.engine.cuda.runner.LONG_WAIT_S", math.inf)
        yield


@pytest.fixture(params=MACHINES.values(), ids=MACHINES)
def make(request: pytest.FixtureRequest) -> Callable[..., Engine]:
    return lambda model=None, **options: engine(request.param(model or ContextModel()), **options)
