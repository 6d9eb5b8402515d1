"""A thread that the system does not allow is an error of the system."""

from __future__ import annotations

import threading

import pytest

from worker.text.threads import start


def no_thread(*_: object) -> None:
    """As Python where the system allows no more of them."""
    raise RuntimeError("can't start new thread")


def test_a_thread_that_may_not_be_is_an_error_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = threading.Thread(target=int)
    with monkeypatch.context() as full, pytest.raises(BlockingIOError, match="Resource temporarily unavailable"):
        full.setattr(threading, "_start_new_thread", no_thread)
        start(thread)
    ours = threading.Thread(target=int)
    start(ours)
    with pytest.raises(RuntimeError, match="once"):
        start(ours)
    ours.join()
