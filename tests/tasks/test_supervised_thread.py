"""A supervised thread that ends before it was told to is noticed, however it ended (F05)."""

from __future__ import annotations

import threading

import pytest

from tasks.supervised_thread import SupervisedThread


class Deaths(list[tuple[str, BaseException | None]]):
    """What was told of threads that ended."""

    def note(self, name: str, error: BaseException | None) -> None:
        self.append((name, error))


@pytest.fixture
def deaths() -> Deaths:
    return Deaths()


def _run(thread: SupervisedThread) -> None:
    thread.start()
    thread.join(60)
    assert not thread.is_alive


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(1), KeyboardInterrupt()])
def test_an_exception_of_any_kind_is_told_with_the_threads_name(deaths: Deaths, error: BaseException) -> None:
    def fail() -> None:
        raise error

    _run(SupervisedThread("claimer", fail, deaths.note))
    assert deaths == [("claimer", error)]


def test_a_thread_that_returns_unasked_is_told_too(deaths: Deaths) -> None:
    _run(SupervisedThread("claimer", lambda: None, deaths.note))
    assert deaths == [("claimer", None)]


def test_a_thread_is_dead_to_others_while_it_still_tells_of_its_end() -> None:
    told, may_end = threading.Event(), threading.Event()

    def note(_name: str, _error: BaseException | None) -> None:
        told.set()
        may_end.wait(60)

    thread = SupervisedThread("claimer", lambda: None, note)
    thread.start()
    assert told.wait(60)
    assert not thread.is_alive, "nobody is to wait for what it will not do any more"
    may_end.set()
    thread.join(60)


def test_a_thread_that_was_told_to_stop_ends_without_a_word(deaths: Deaths) -> None:
    thread = SupervisedThread("claimer", lambda: waiting.wait() and None, deaths.note)
    waiting = thread.stopping
    thread.start()
    assert thread.is_alive
    thread.stop()
    thread.join(60)
    assert not thread.is_alive
    assert deaths == []


def test_joining_a_thread_that_never_began_or_itself_returns_at_once(deaths: Deaths) -> None:
    joined = threading.Event()

    def run() -> None:
        thread.join()
        joined.set()
        thread.stopping.wait()

    thread = SupervisedThread("claimer", run, deaths.note)
    thread.join()
    thread.start()
    assert joined.wait(60)
    thread.stop()
    thread.join(60)
    assert deaths == []
