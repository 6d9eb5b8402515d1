"""The cursor gives each event, and each part of one, once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcd.events import End, Error, Loading, Queued, Started, Token, TokenLogprob, ToolCallDelta
from orcd.store.event_stream import Cursor

END = End("stop", 3, 5, 1, 2, 3, "0" * 64)
OTHERS = (Queued(3), Loading(50), Started("job-1", "demo", 1_700_000_000_000, 2), END, Error("CANCELLED", "", False))


def test_a_cursor_says_which_tokens_are_missing():
    cursor = Cursor()
    assert cursor.new_part(Token("a", 1, [5]))
    with pytest.raises(ValueError, match="tokens 2 to 3 of choice 0 are missing"):
        cursor.new_part(Token("d", 4, [8]))
    with pytest.raises(ValueError, match="tokens 1 to 2 of choice 1 are missing"):
        cursor.new_part(Token("c", 3, [7], choice=1))
    assert cursor.new_part(Token("b", 2, [6]))
    assert cursor.num_tokens == 2


def read(cursor: Cursor, *events: Token) -> None:
    for event in events:
        assert cursor.new_part(event) == event


LOGPROBS = [TokenLogprob(number, -1.0) for number in (3, 4, 5)]


def test_an_event_that_was_seen_in_part_is_cut_where_what_is_new_begins():
    """F07: Redis forgot the log's end, and its owner wrote it again with other borders between events."""
    cursor = Cursor()
    read(cursor, Token("one ", 1, [1]), Token("two ", 2, [2], analysis="hm"), Token("three ", 3, [3]))
    assert cursor.new_part(Token("three four five ", 3, [3, 4, 5], analysis="so", logprobs=LOGPROBS)) == Token(
        "four five ", 4, [4, 5], analysis="so", logprobs=LOGPROBS[1:]
    )
    assert cursor.new_part(Token("two three four five six", 2, [2, 3, 4, 5, 6], analysis="hmso, yes")) == Token(
        "six", 6, [6], analysis=", yes"
    )
    assert cursor.num_tokens == 6


def test_log_probabilities_of_the_prompt_are_new_once() -> None:
    cursor = Cursor()
    read(cursor, Token("one ", 1, [1], prompt_logprobs=[None]))
    again = Token("one two ", 1, [1, 2], prompt_logprobs=[None])
    assert cursor.new_part(again) == Token("two ", 2, [2])


def test_calls_of_tools_are_cut_where_what_is_new_begins():
    cursor = Cursor()
    read(cursor, Token("", 1, [1], tool_calls=[ToolCallDelta(0, "id0", "f", '{"a')]))
    read(cursor, Token("", 2, [2], tool_calls=[ToolCallDelta(0, arguments='":')]))
    again = [ToolCallDelta(0, "id0", "f", '{"a": 1}'), ToolCallDelta(1, "id1", "g", "{}")]
    rest = [ToolCallDelta(0, arguments=" 1}"), ToolCallDelta(1, "id1", "g", "{}")]
    assert cursor.new_part(Token("", 1, [1, 2, 3], tool_calls=again)) == Token("", 3, [3], tool_calls=rest)
    read(cursor, Token("", 4, [4]))
    assert cursor.new_part(Token("end", 4, [4, 5])) == Token("end", 5, [5])


def test_events_that_were_seen_whole_show_where_others_may_be_cut():
    """F07: the new borders lie within an event that was seen as one."""
    cursor = Cursor()
    read(cursor, Token("one two three ", 1, [1, 2, 3]))
    with pytest.raises(ValueError, match="the text of token 2 of choice 0 cannot be told from the next ones"):
        cursor.new_part(Token("two three four ", 2, [2, 3, 4]))
    assert cursor.new_part(Token("one ", 1, [1])) is None
    assert cursor.new_part(Token("two three four ", 2, [2, 3, 4])) == Token("four ", 4, [4])


def test_tokens_that_are_others_than_before_are_never_joined_to_those():
    """F07: another model file or device went on."""
    cursor = Cursor()
    read(cursor, Token("one ", 1, [1]), Token("two ", 2, [2]))
    for other in (Token("zwei ", 2, [7]), Token("zwei drei ", 2, [7, 8]), Token("x", 1, [9])):
        with pytest.raises(ValueError, match=f"tokens from {other.i} of choice 0 are others than before"):
            cursor.new_part(other)
    read(cursor, Token("three", 3, [3]))


def test_of_a_long_answer_only_the_end_is_remembered():
    """F07: what is further back is taken for seen, and never cut."""
    cursor = Cursor()
    for number in range(1, 20_001):
        read(cursor, Token("ab", number, [number]))
    assert cursor.new_part(Token("ab", 5, [5])) is None
    assert cursor.new_part(Token("?", 5, [99])) is None
    with pytest.raises(ValueError, match="cannot be told from the next ones"):
        cursor.new_part(Token("ab" * 19_997, 5, list(range(5, 20_002))))
    assert cursor.new_part(Token("abababcd", 19_998, list(range(19_998, 20_002)))) == Token("cd", 20_001, [20_001])
    (choice,) = cursor._choices.values()
    assert len(choice._ids) == len(choice._borders) - 1 < 2 * choice.MAX_TOKENS


def test_a_choice_s_finish_is_new_though_the_tokens_that_come_with_it_are_not():
    cursor = Cursor()
    read(cursor, Token("one ", 1, [1]))
    assert cursor.new_part(Token("one ", 1, [1], finish="stop")) == Token("", 2, [], finish="stop")
    assert cursor.new_part(Token("one ", 1, [1], finish="stop")) is None


def test_a_start_after_a_release_is_new_though_its_attempt_is_the_same():
    cursor = Cursor()
    starts = [Started("j", "m", started_at, 1, f"print-{started_at}") for started_at in (5, 6)]
    assert [cursor.new_part(start) for start in (*starts, *starts)] == [*starts, None, None]


def test_a_finish_that_comes_behind_the_last_token_is_seen_once():
    cursor = Cursor()
    assert cursor.new_part(Token("a", 1, [5]))
    assert cursor.new_part(Token("", 2, [], finish="stop"))
    assert not cursor.new_part(Token("", 2, [], finish="stop"))
    assert not cursor.new_part(Token("a", 1, [5]))


def test_every_attempt_s_start_is_seen_once():
    cursor = Cursor()
    starts = [Started("j", "m", 1, attempt) for attempt in (1, 2, 1, 2, 3)]
    assert [cursor.new_part(start) for start in starts] == [starts[0], starts[1], None, None, starts[4]]


def test_nothing_is_new_after_the_end():
    cursor = Cursor()
    assert cursor.new_part(END)
    assert cursor.ended
    for event in (*OTHERS, Token("x", 1, [1])):
        assert not cursor.new_part(event)


@st.composite
def histories(draw) -> list:
    """What a job's owners wrote: starts, tokens of up to three choices in any mix, finishes, the end."""
    num_choices = draw(st.integers(1, 3))
    counts = [0] * num_choices
    events: list = [Started("j", "m", 1, 1)]
    attempt = 1
    for choice, num_tokens in draw(
        st.lists(st.tuples(st.integers(0, num_choices - 1), st.integers(0, 3)), max_size=12)
    ):
        if num_tokens == 0:
            attempt += 1
            events.append(Started("j", "m", 1, attempt))
            continue
        first = counts[choice] + 1
        events.append(Token(f"{choice}:{first}", first, list(range(first, first + num_tokens)), choice))
        counts[choice] += num_tokens
    events += [Token("", count + 1, [], choice, finish="stop") for choice, count in enumerate(counts)]
    return [*events, END]


@settings(max_examples=300)
@given(histories(), st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=10))
def test_pieces_of_a_history_in_any_order_give_each_token_once(history, pieces):
    cursor = Cursor()
    seen = []

    def hand_over(events: list) -> None:
        seen.extend(new for event in events if (new := cursor.new_part(event)))

    for start, end in pieces:
        try:
            hand_over([event for event in history[start:end] if event != END])
        except ValueError:
            hand_over(history[: max(start, end)])
    hand_over(history)
    assert seen[-1] == END
    assert seen.count(END) == 1
    attempts = [event.attempt for event in seen if isinstance(event, Started)]
    assert attempts == sorted(set(attempts))
    for choice in range(3):
        assert of_choice(seen, choice) == of_choice(history, choice)


def of_choice(events: list, choice: int) -> list:
    return [event for event in events if isinstance(event, Token) and event.choice == choice]
