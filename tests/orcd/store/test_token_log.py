"""Token logs: what is whole, and what stands for one that is not."""

from __future__ import annotations

import pytest
import redis

from orcd.errors import LogDamaged
from orcd.events import End, Error, Event, Position, Started, Token, encode_event
from orcd.store.token_log import Entry, read_entry, read_events, read_log, script_entries, terminal_error, usable

END = End("stop", 3, 3, 1, 2, 3, "0" * 64)
ERROR = Error("CANCELLED", "cancelled", False)
EVENTS: list[Event] = [
    Started("j", "m", 1, 1),
    Token("a", 1, [101]),
    Token("b", 1, [201], choice=1),
    Token("", 2, [], choice=1, finish="stop"),
    Token("c", 2, [102]),
    END,
]


def entries(events: list[Event]) -> list[Entry]:
    position, log = Position(), []
    for event in events:
        position = position.after(len(event.ids) if isinstance(event, Token) else 0)
        log.append((position.text.encode(), {b"e": encode_event(event)}))
    return log


def test_a_whole_log_is_read_with_the_place_of_every_event():
    log = read_log("j", entries(EVENTS))
    assert [logged.event for logged in log] == EVENTS
    assert [logged.position.text for logged in log] == ["0-1", "1-0", "2-0", "2-1", "3-0", "3-1"]
    assert read_log("j", []) == ()


@pytest.mark.parametrize("missing", [index for index, event in enumerate(EVENTS) if getattr(event, "ids", [])])
def test_a_log_that_lacks_tokens_is_refused(missing: int):
    """F07: whichever they are."""
    log = entries(EVENTS)
    del log[missing]
    with pytest.raises(LogDamaged, match="job j: its token log is damaged or gone"):
        read_log("j", log)


def test_tokens_that_are_not_the_next_ones_of_their_choice_are_refused():
    log = entries([Token("a", 1, [1]), Token("b", 3, [2])])
    with pytest.raises(LogDamaged):
        read_log("j", log)


@pytest.mark.parametrize("fields", [{}, {b"x": b"y"}, {b"e": b"no event"}, {b"e": b"{}"}, {b"e": b"\xff"}])
def test_an_entry_that_cannot_be_read_is_a_value_error(fields: dict[bytes, bytes]):
    with pytest.raises(ValueError):
        read_entry((b"1-0", fields), None)


def test_an_entry_may_follow_one_that_is_not_known():
    entry = (b"7-0", {b"e": encode_event(Token("x", 7, [1]))})
    assert read_entry(entry, None) == read_entry(entry, Position(6, 4))
    with pytest.raises(ValueError, match="entries between 5-0 and 7-0 are missing"):
        read_entry(entry, Position(5, 0))


@pytest.mark.parametrize(
    ("state", "end", "log", "expected"),
    [
        (b"succeeded", encode_event(END), entries(EVENTS), EVENTS),
        (b"succeeded", None, entries(EVENTS), EVENTS),
        (b"running", None, entries(EVENTS[:2]), EVENTS[:2]),
        (b"cancelled", encode_event(ERROR), None, [ERROR]),
        (b"cancelled", encode_event(ERROR), entries(EVENTS[:2]), [*EVENTS[:2], ERROR]),
        (b"cancelled", encode_event(ERROR), entries(EVENTS)[2:3], [ERROR]),
    ],
)
def test_an_error_in_the_record_stands_for_what_the_log_lacks(state, end, log, expected):
    assert read_events("j", state, end, log) == expected


@pytest.mark.parametrize(
    ("state", "end", "log"),
    [
        (b"succeeded", encode_event(END), None),
        (b"succeeded", encode_event(END), entries(EVENTS[:2])),
        (b"succeeded", encode_event(END), entries(EVENTS)[2:]),
        (b"failed", None, entries(EVENTS[:2])),
        (b"running", b"no event", None),
    ],
)
def test_nothing_stands_for_the_tokens_of_an_answer(state, end, log):
    """F07: never `succeeded` with another text."""
    with pytest.raises(LogDamaged):
        read_events("j", state, end, log)


def test_only_an_error_is_a_terminal_error():
    assert terminal_error(encode_event(ERROR)) == ERROR
    for other in (None, b"", b"no event", encode_event(END)):
        assert terminal_error(other) is None


def test_an_answer_of_a_key_of_another_type_is_none_and_other_errors_are_raised():
    assert usable([1]) == [1]
    assert usable(redis.ResponseError("WRONGTYPE Operation against a key")) is None
    with pytest.raises(redis.ResponseError, match="LOADING"):
        usable(redis.ResponseError("LOADING Redis is loading"))


def test_entries_of_a_script_have_the_form_of_a_command_s():
    assert script_entries([[b"1-0", [b"e", b"x", b"f", b"y"]]]) == [(b"1-0", {b"e": b"x", b"f": b"y"})]
