"""Work that waits for Redis is done when Redis is back, and no piece of it harms another."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import partial
from queue import SimpleQueue
from unittest.mock import Mock

import pytest
import redis

from tasks import finisher
from tasks.finisher import MAX_TOGETHER, NUM_THREADS, TOGETHER_S, Finisher, Work
from tests.conftest import wait_until


class Scene:
    """A finisher, and what it said."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.deaths: list[str] = []
        self.prepared: list[str] = []
        self.begun: list[list[str]] = []
        self.answered: list[str] = []
        self.finisher = Finisher[str](
            lambda: self.prepared.append(threading.current_thread().name),
            self._begin,
            lambda _, error: self.failures.append(error),
            lambda name, _: self.deaths.append(name),
        )
        self.finisher.start()

    def _begin(self, items: Sequence[str]) -> list[Work]:
        self.begun.append(list(items))
        if "bad" in items:
            raise KeyError("bad")
        return [partial(self.answered.append, item) for item in items]

    def hold_up(self) -> threading.Event:
        """Keep all threads from work until the event is set."""
        may_go_on, held = threading.Event(), threading.Barrier(NUM_THREADS + 1)
        for _ in range(NUM_THREADS):
            self.finisher.submit(lambda: (held.wait(60), may_go_on.wait(60)))
        held.wait(60)
        return may_go_on


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.finisher.stop(5)
    assert scene.deaths == []


def test_each_thread_is_prepared_once(scene: Scene) -> None:
    wait_until(lambda: len(scene.prepared) == NUM_THREADS)
    done: list[int] = []
    for number in range(10):
        scene.finisher.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    wait_until(lambda: len(done) == 10)
    assert len(scene.prepared) == NUM_THREADS


def test_what_fails_while_redis_is_away_is_done_when_it_is_back(scene: Scene) -> None:
    """F17: a result that could not be stored was forgotten, and its message kept its place for ever."""
    errors: list[Exception] = [redis.ConnectionError(), redis.ReadOnlyError(), redis.TimeoutError()]
    done = threading.Event()

    def work() -> None:
        if errors:
            raise errors.pop()
        done.set()

    scene.finisher.submit(work)
    assert done.wait(60)
    assert len(scene.failures) == 3


def test_what_fails_for_ever_stops_nothing_else(scene: Scene) -> None:
    done: list[int] = []

    def work() -> None:
        raise redis.ResponseError("WRONGTYPE")

    for number in range(NUM_THREADS):
        scene.finisher.submit(work)
        scene.finisher.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    wait_until(lambda: len(done) == NUM_THREADS)


def test_any_other_failure_concerns_one_piece_of_work(scene: Scene) -> None:
    done = threading.Event()

    def work() -> None:
        raise KeyError("x")

    for _ in range(NUM_THREADS * 2):
        scene.finisher.submit(work)
    scene.finisher.submit(done.set)
    assert done.wait(60)
    wait_until(lambda: [type(error) for error in scene.failures] == [KeyError] * NUM_THREADS * 2)


def test_items_that_wait_are_begun_together_and_each_is_done_once(scene: Scene) -> None:
    may_go_on = scene.hold_up()
    items = [f"item {number}" for number in range(2 * MAX_TOGETHER + 3)]
    for item in items:
        scene.finisher.submit_item(item)
    assert scene.finisher.num_waiting == len(items)
    may_go_on.set()
    wait_until(lambda: len(scene.answered) == len(items))
    assert sorted(scene.answered) == sorted(items)
    assert sorted(map(len, scene.begun)) == [3, MAX_TOGETHER, MAX_TOGETHER]
    wait_until(lambda: scene.finisher.num_waiting == 0)


def test_where_several_came_together_the_next_ones_are_waited_for_and_where_one_came_it_is_not(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    may_go_on = threading.Event()
    monkeypatch.setattr(scene.finisher._giving_up, "wait", lambda s: (waits.append(s), may_go_on.wait(60)))
    for item in ("a", "b"):
        scene.finisher.submit_item(item)
        wait_until(lambda item=item: item in scene.answered)  # type: ignore[misc]
    assert waits == []
    may_begin = scene.hold_up()
    for item in ("c", "d"):
        scene.finisher.submit_item(item)
    may_begin.set()
    wait_until(lambda: len(scene.answered) == 4 and scene.finisher.num_waiting == 0)
    for item in ("e", "f", "g"):
        scene.finisher.submit_item(item)
    wait_until(lambda: waits)
    may_go_on.set()
    wait_until(lambda: len(scene.answered) == 7)
    assert scene.begun == [["a"], ["b"], ["c", "d"], ["e", "f", "g"]]
    assert set(waits) == {TOGETHER_S}


def test_a_piece_that_fails_of_items_that_were_begun_together_is_done_again_alone(scene: Scene) -> None:
    errors = [redis.ConnectionError()]
    answered: list[str] = []

    def answer(item: str) -> None:
        if item == "b" and errors:
            raise errors.pop()
        answered.append(item)

    scene.answered = Mock(append=answer)
    may_go_on = scene.hold_up()
    for item in ("a", "b", "c"):
        scene.finisher.submit_item(item)
    may_go_on.set()
    wait_until(lambda: len(answered) == 3)
    assert sorted(answered) == ["a", "b", "c"]
    assert scene.begun == [["a", "b", "c"]]


def test_items_that_cannot_be_begun_concern_no_others(scene: Scene) -> None:
    may_go_on = scene.hold_up()
    scene.finisher.submit_item("bad")
    may_go_on.set()
    wait_until(lambda: scene.failures)
    scene.finisher.submit_item("good")
    wait_until(lambda: scene.answered == ["good"])
    assert [type(error) for error in scene.failures] == [KeyError]


def test_at_the_end_what_is_queued_is_done_and_what_waits_for_redis_is_left() -> None:
    scene = Scene()
    done: list[int] = []
    tries: list[int] = []

    def away() -> None:
        tries.append(1)
        raise redis.ConnectionError

    scene.finisher.submit(away)
    wait_until(lambda: tries)
    for number in range(5):
        scene.finisher.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    assert scene.finisher.is_waiting
    scene.finisher.stop(60)
    assert done == list(range(5))
    assert not scene.finisher.is_waiting
    assert scene.deaths == []


class QueueOfOneThatWaits(SimpleQueue[Work | None]):
    """Puts nothing before what was put is taken."""

    def put(self, item: Work | None, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        wait_until(self.empty)


def test_whichever_thread_is_woken_first_was_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a worker that leaves in good order says that a thread of its died."""
    monkeypatch.setattr(finisher, "SimpleQueue", QueueOfOneThatWaits)
    scene = Scene()
    is_busy, may_end = threading.Event(), threading.Event()

    def keep_the_first_thread_busy() -> None:
        if threading.current_thread().name == "finisher 0":
            is_busy.set()
            may_end.wait(60)

    while not is_busy.wait(0.01):
        scene.finisher.submit(keep_the_first_thread_busy)
    stopping = threading.Thread(target=scene.finisher.stop, args=(60,))
    stopping.start()
    wait_until(lambda: not scene.finisher._threads[1].is_alive)
    may_end.set()
    stopping.join(60)
    assert scene.deaths == []
