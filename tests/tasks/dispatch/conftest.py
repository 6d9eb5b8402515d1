"""A store of jobs, and the claimer with what it passes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orcd.store.job_store import JobStore
from tests.orcd.job_writer import MakeStore
from tests.tasks.dispatch.claimer_scene import ClaimerScene


@pytest.fixture
def store(make_store: MakeStore) -> JobStore:
    return make_store()


@pytest.fixture
def scene(store: JobStore) -> Iterator[ClaimerScene]:
    """The claimer's; tests of others have one of their own."""
    with ClaimerScene(store) as scene:
        yield scene
