"""A store of jobs, and the claimer with what it passes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orcd.store.job_store import JobStore
from tasks.dispatch import prompt_encoder
from tests.orcd.job_writer import MakeStore
from tests.tasks.dispatch.byte_model import PATIENCE_S
from tests.tasks.dispatch.claimer_scene import ClaimerScene


@pytest.fixture
def store(make_store: MakeStore) -> JobStore:
    return make_store()


@pytest.fixture
def scene(store: JobStore) -> Iterator[ClaimerScene]:
    """The claimer's; tests of others have one of their own."""
    with ClaimerScene(store) as scene:
        yield scene


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoders of tests wait for a template as long as a busy machine may need."""
    monkeypatch.setattr(prompt_encoder, "SHORT_RENDER_S", PATIENCE_S)
