"""The reader: every event once, whatever is lost, repeated or late on the way."""

from __future__ import annotations

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from orcd.errors import InvalidRequest, LogDamaged
from orcd.events import End, Error, Event, Position, Queued, Started, Token, TokenLogprob, encode_event
from orcd.status import Look
from orcd.store.event_stream import PAGE_ENTRIES, POLL_S, EventStream

END = End("stop", 3, 5, 1, 2, 3, "0" * 64)
HISTORY: list[Event] = [
    Started("j", "m", 1, 1),
    Token("a", 1, [101]),
    Token("bc", 2, [102, 103]),
    Started("j", "m", 1, 2),
    Token("d", 4, [104]),
    Token("e", 5, [105]),
    END,
]


def reader(from_token: int = 0, timeout: float | None = None, reconnect_s: float = 10) -> EventStream:
    return EventStream("job-1", from_token, timeout, reconnect_s)


def message(event: Event) -> dict:
    return {"type": "message", "data": encode_event(event)}


def entries(events: list[Event], start: str = "0-0") -> list:
    """The log that holds ``events``, from the entry id ``start``."""
    position, log = Position(), []
    for event in events:
        position = position.after(len(event.ids) if isinstance(event, Token) else 0)
        if position >= Position.parse(start.encode()):
            log.append((f"{position.n}-{position.k}".encode(), {b"e": encode_event(event)}))
    return log


def replay(
    stream: EventStream, state: str, log: list, start: str | None = None, *, rank: int | None = None, end: bytes = b""
) -> list[Event]:
    """The events of one page of the log, from where the reader wants it."""
    events, _ = stream.replayed(start or stream.log_start, Look(state, rank, True, end), log)
    return events


def test_published_events_come_through_once():
    r = reader()
    assert r.received(message(HISTORY[0])) == [HISTORY[0]]
    assert r.received(message(HISTORY[1])) == [HISTORY[1]]
    assert r.received(message(HISTORY[1])) == []


@pytest.mark.parametrize(
    "received",
    [
        None,
        {"type": "subscribe", "data": 1},
        {"type": "message", "data": b"no event"},
        message(HISTORY[2]),
    ],
    ids=["silence", "subscription", "garbage", "gap"],
)
def test_silence_a_new_subscription_garbage_and_a_gap_ask_for_the_log(received):
    r = reader()
    assert r.received(received) is None
    assert replay(r, "running", entries(HISTORY[:3])) == HISTORY[:3]


def test_a_replay_starts_where_the_reader_is():
    r = reader()
    replay(r, "running", entries(HISTORY[:2]))
    r.received(message(HISTORY[2]))
    assert r.log_start == "3-0"
    assert replay(r, "succeeded", entries(HISTORY, r.log_start)) == HISTORY[3:]
    assert r.ended


def test_a_queued_job_s_place_is_told_when_it_changes():
    r = reader()
    assert replay(r, "queued", [], rank=4) == [Queued(5)]
    assert replay(r, "queued", [], rank=4) == []
    assert replay(r, "queued", [], rank=0) == [Queued(1)]
    assert replay(r, "running", entries(HISTORY[:1])) == HISTORY[:1]
    assert replay(r, "queued", [], rank=0) == [Queued(1)]


def test_an_unknown_job_is_an_error():
    with pytest.raises(InvalidRequest, match="job job-1: unknown"):
        Look.read("job-1", [b"", -1, 1, b"", b""])


@pytest.mark.parametrize(
    ("state", "log"),
    [
        ("succeeded", []),
        ("succeeded", entries(HISTORY[:-1])),
        ("running", entries(HISTORY)[2:]),
        ("running", entries(HISTORY)[:2] + entries(HISTORY)[3:]),
        ("running", [(b"1-0", {b"e": b"no event"})]),
        ("running", [(b"1-0", {b"x": b""})]),
        ("running", [(b"2-0", {b"e": encode_event(Token("a", 1, [101]))})]),
        ("running", None),
    ],
)
def test_a_damaged_log_is_an_error_instead_of_a_wait_for_ever(state, log):
    """F07: a hole in a log is refused by every reader."""
    with pytest.raises(LogDamaged, match="job job-1: its token log is damaged or gone"):
        replay(reader(), state, log)


def test_a_full_page_of_an_ended_job_is_not_taken_for_damage():
    tokens: list[Event] = [Token("x", i, [i]) for i in range(1, PAGE_ENTRIES + 1)]
    r = reader()
    assert len(replay(r, "succeeded", entries(tokens))) == PAGE_ENTRIES
    assert not r.ended


@pytest.mark.parametrize("from_token", [0, 1, 2, 3, 4, 5, 9])
def test_tokens_the_reader_has_are_left_out(from_token):
    events = replay(reader(from_token), "succeeded", entries(HISTORY))
    tokens = [(event.i + k, token) for event in events if isinstance(event, Token) for k, token in enumerate(event.ids)]
    assert tokens == [(i, 100 + i) for i in range(from_token + 1, 6)]
    assert events[-1] == END


def test_an_event_that_straddles_the_start_loses_its_first_tokens_but_not_its_text():
    logprobs = [TokenLogprob(102, -1.0), TokenLogprob(103, -2.0)]
    r = reader(2)
    r.received(message(HISTORY[1]))
    assert r.received(message(Token("bc", 2, [102, 103], logprobs=logprobs))) == [
        Token("bc", 3, [103], logprobs=logprobs[1:])
    ]
    first = Token("abc", 1, [101, 102, 103], prompt_logprobs=[None])
    assert reader(0).received(message(first)) == [first]
    assert reader(2).received(message(first)) == [Token("abc", 3, [103])], "the prompt's came with the first token"


def test_a_choice_s_finish_comes_even_if_all_its_tokens_are_left_out():
    finish = Token("", 2, [], finish="stop")
    r = reader(1)
    assert r.received(message(HISTORY[1])) == []
    assert r.received(message(finish)) == [finish]


@pytest.mark.parametrize("from_token", [-1, 1.0, "1", None, True])
def test_a_start_that_is_no_count_of_tokens_is_refused(from_token):
    with pytest.raises(InvalidRequest, match="from_token"):
        reader(from_token)


def test_waiting_ends_with_the_timeout(now: list[float]):
    assert reader().wait_s() == POLL_S
    assert reader(timeout=0.5).wait_s() <= 0.5
    late, none = reader(timeout=0.5), reader(timeout=0)
    now[0] += 0.5
    assert late.wait_s() == none.wait_s() == 0, "what the log holds by now is read in any case"
    for each in (late, none):
        replay(each, "running", [])
    with pytest.raises(TimeoutError, match=r"job job-1: did not end within 0\.5 s"):
        late.wait_s()
    with pytest.raises(TimeoutError, match="job job-1: did not end within 0 s"):
        none.wait_s()


def test_an_outage_is_put_up_with_for_a_while(now: list[float]):
    r = reader(reconnect_s=0.5)
    error = redis.ConnectionError("gone")
    waits = [r.backoff_s(error) for _ in range(12)]
    assert waits == sorted(waits)
    assert waits[-1] <= 1.0
    now[0] += 0.51
    with pytest.raises(redis.ConnectionError):
        r.backoff_s(error)


def test_an_outage_that_ended_is_forgotten(now: list[float]):
    r = reader(reconnect_s=0.5)
    error = redis.ConnectionError("gone")
    first = r.backoff_s(error)
    r.backoff_s(error)
    now[0] += 0.51
    replay(r, "running", [])
    assert r.backoff_s(error) == first


def test_waiting_for_redis_ends_with_the_timeout_too(now: list[float]):
    r = reader(timeout=0.01)
    now[0] += 0.02
    with pytest.raises(TimeoutError):
        r.backoff_s(redis.ConnectionError("gone"))


STEPS = st.lists(st.sampled_from(["write", "write", "deliver", "cut", "subscribe", "silence", "repeat"]), max_size=40)


@settings(max_examples=300)
@given(STEPS)
def test_whatever_happens_to_the_connection_each_event_comes_once_and_in_order(steps):
    r = reader()
    written: list[Event] = []
    seen: list[Event] = []
    channel: list[dict] | None = None  # what is under way to the reader; None: not subscribed

    def step(name: str) -> None:
        nonlocal channel
        match name:
            case "write" if len(written) < len(HISTORY):
                written.append(HISTORY[len(written)])
                if channel is not None:
                    channel.append(message(written[-1]))
            case "deliver" if channel:
                receive(channel.pop(0))
            case "cut":
                channel = None
            case "subscribe" if channel is None:
                channel = [{"type": "subscribe", "data": 1}]
            case "silence" if channel == []:
                receive(None)
            case "repeat" if channel is not None and written:
                channel.append(message(written[len(channel) % len(written)]))

    def receive(arrived: dict | None) -> None:
        if r.ended:
            return
        events = r.received(arrived)
        if events is None:
            events = replay(r, "succeeded" if END in written else "running", entries(written, r.log_start))
        seen.extend(events)

    for name in [*steps, *["write"] * len(HISTORY), "cut", "subscribe", "deliver"]:
        step(name)
    assert seen == HISTORY


def test_an_error_ends_the_reading():
    r = reader()
    error = Error("CANCELLED", "cancelled", False)
    assert r.received(message(error)) == [error]
    assert r.ended
