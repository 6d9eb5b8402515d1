from __future__ import annotations

import pytest

from orcd.events import End, Error, Event, Started, Token
from orcd.result import Choice
from tests.chaos.clients.seen import Seen

ANSWER = (Choice("a b c", [1, 2, 3], "length"),)
STARTED = Started("j", "m", 0, 1)
END = End("length", 1, 3, 0, 0, 0, "")
RIGHT: list[Event] = [STARTED, Token("a b", 1, [1, 2]), Token(" c", 3, [3]), END]


def seen() -> Seen:
    return Seen("events", "m", "j")


def problem_of(events: list[Event], from_token: int = 0) -> str:
    found = seen()
    found.check_events(events, ANSWER, from_token)
    return found.problem


def test_the_answer_of_the_quiet_run_is_right() -> None:
    assert problem_of(RIGHT) == ""


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([STARTED, Token("a b", 1, [1, 2]), END], "wrong"),
        ([STARTED, Token("a b", 1, [1, 9]), Token(" c", 3, [3]), END], "wrong"),
        ([STARTED, Token("a x", 1, [1, 2]), Token(" c", 3, [3]), END], "wrong"),
        ([STARTED, Token("a", 1, [1]), Token(" c", 3, [3]), END], "wrong"),
        ([STARTED, Token("a b", 1, [1, 2]), Token("b", 2, [2]), Token(" c", 3, [3]), END], "doubled"),
        ([*RIGHT, END], "doubled"),
        (RIGHT[:-1], "lost"),
        ([], "lost"),
    ],
)
def test_what_differs_is_named(events: list[Event], problem: str) -> None:
    assert problem_of(events) == problem


def test_a_job_that_failed_must_be_right_as_far_as_it_came() -> None:
    error = Error("CANCELLED", "cancelled", False)
    assert problem_of([STARTED, Token("a b", 1, [1, 2]), error]) == ""
    assert problem_of([STARTED, Token("a x", 1, [1, 2]), error]) == "wrong"
    found = seen()
    found.check_events([error], ANSWER)
    assert found.error == "CANCELLED"


def test_a_reader_that_comes_later_gets_the_end_of_the_answer() -> None:
    assert problem_of([Token(" c", 3, [3]), END], from_token=2) == ""
    assert problem_of([Token("b c", 3, [3]), END], from_token=2) == ""  # an event's text is whole where that is not cut
    assert problem_of([Token(" d", 3, [3]), END], from_token=2) == "wrong"
    assert problem_of([END], from_token=2) == "wrong"


def test_the_first_problem_stays() -> None:
    found = seen()
    found.blame("lost", "first")
    found.blame("wrong", "second")
    assert (found.problem, found.detail) == ("lost", "first")
