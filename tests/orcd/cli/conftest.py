"""What the tests of the command line share."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator

import pytest

from orcd.client import Client

StandardInput = Callable[[bytes], None]


@pytest.fixture
def client(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client of the Redis that the commands of the test use too."""
    monkeypatch.setenv("ORCD_REDIS_URL", redis_url)
    with Client(redis_url) as client:
        yield client


@pytest.fixture
def standard_input(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandardInput]:
    """Puts a pipe with a text in it in place of standard input."""
    opened: list[io.TextIOWrapper] = []

    def put(text: bytes) -> None:
        reader, writer = os.pipe()
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(text)
        opened.append(io.TextIOWrapper(os.fdopen(reader, "rb")))
        monkeypatch.setattr("sys.stdin", opened[-1])

    yield put
    for file in opened:
        file.close()
