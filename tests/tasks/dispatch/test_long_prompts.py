"""The thread for long prompts: in order, not too many, and none lost at the end."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tasks.dispatch.long_prompts import MAX_WAITING, LongPrompt, LongPrompts
from tasks.dispatch.prompt_encoder import Lane
from tests.conftest import wait_until


def _prompt(number: int, lane: Lane = "prompts") -> Any:
    return LongPrompt(number, number, lane)  # type: ignore[arg-type]  # nobody looks into it here


class Scene:
    """Long prompts of which each waits until the test lets it go on."""

    def __init__(self) -> None:
        self.encoded: list[Any] = []
        self.given_back: list[Any] = []
        self.deaths: list[str] = []
        self._going_on = threading.Semaphore(0)
        self.prompts = LongPrompts(self._encode, lambda prompt: self.given_back.append(prompt.claim), self.died)

    def died(self, name: str, _error: BaseException | None) -> None:
        self.deaths.append(name)

    def _encode(self, prompt: LongPrompt) -> None:
        assert self._going_on.acquire(timeout=60)
        self.encoded.append(prompt.claim)

    def go_on(self, count: int) -> None:
        self._going_on.release(count)


@pytest.fixture
def lane() -> Scene:
    return Scene()


def test_prompts_have_their_turn_in_order(lane: Scene) -> None:
    lane.prompts.start()
    for number in range(5):
        lane.prompts.put(_prompt(number))
    lane.go_on(5)
    wait_until(lambda: lane.encoded == [0, 1, 2, 3, 4])
    lane.prompts.stop(5)
    assert lane.given_back == lane.deaths == []


def test_whoever_brings_too_many_waits_until_there_is_room(lane: Scene) -> None:
    lane.prompts.start()
    num_prompts = MAX_WAITING + 2  # one has its turn, and the last one is one too many

    def bring() -> None:
        for number in range(num_prompts):
            lane.prompts.put(_prompt(number))

    bringing = threading.Thread(target=bring)
    bringing.start()
    bringing.join(0.2)
    assert bringing.is_alive()
    lane.go_on(num_prompts)
    bringing.join(60)
    assert not bringing.is_alive()
    wait_until(lambda: lane.encoded == list(range(num_prompts)))
    lane.prompts.stop(5)


def test_at_the_end_what_waits_is_given_back_and_nobody_waits_any_more(lane: Scene) -> None:
    lane.prompts.start()
    for number in range(MAX_WAITING):
        lane.prompts.put(_prompt(number))
    bringing = threading.Thread(target=lambda: [lane.prompts.put(_prompt(number)) for number in (100, 101)])
    bringing.start()
    lane.prompts.ask_to_stop()
    bringing.join(60)
    assert not bringing.is_alive()
    lane.go_on(1)
    lane.prompts.stop(5)
    assert lane.encoded in ([0], [])
    assert lane.encoded + lane.given_back == [*range(MAX_WAITING), 100, 101]
    assert lane.deaths == []


def test_one_that_never_began_can_be_stopped(lane: Scene) -> None:
    lane.prompts.put(_prompt(1))
    lane.prompts.stop(5)
    assert lane.given_back == [1]


def test_lanes_do_not_wait_for_each_other(lane: Scene) -> None:
    both, passed = threading.Barrier(2, timeout=60), []

    def encode(prompt: LongPrompt) -> None:
        both.wait()
        passed.append(prompt.claim)

    prompts = LongPrompts(encode, lane.given_back.append, lane.died)
    prompts.start()
    prompts.put(_prompt(1))
    prompts.put(_prompt(2, "grammars"))
    wait_until(lambda: sorted(passed) == [1, 2])
    prompts.stop(5)
    assert lane.given_back == lane.deaths == []


def test_whoever_brings_a_grammar_waits_for_nobody_and_it_is_given_back_at_the_end(lane: Scene) -> None:
    for number in range(3 * MAX_WAITING):
        lane.prompts.put(_prompt(number, "grammars"))
    lane.prompts.stop(5)
    assert lane.given_back == list(range(3 * MAX_WAITING))
