"""What the tests of this room share."""

from __future__ import annotations

import pytest

from tests.tasks.observe.watched import Watched


@pytest.fixture
def watched() -> Watched:
    """An observer of the test's own."""
    return Watched()
