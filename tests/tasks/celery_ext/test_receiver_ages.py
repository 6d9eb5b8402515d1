"""Messages that have waited long go before younger, more urgent ones: every second place is theirs."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import redis

from orcd.store import schema
from tasks.celery_ext import receiver as receivers
from tasks.celery_ext.receiver import Receiver
from tests.tasks.celery_ext.taken_messages import MakeReceiver, send, take

AGEING_MS = 300_000
Look = Callable[[Receiver], None]
Pass = Callable[[float], None]


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Look:
    """Has a receiver note the ages now."""
    monkeypatch.setattr(receivers, "MAINTENANCE_S", 0.0)
    return Receiver.maintain


@pytest.fixture
def let_pass(connection: redis.Redis) -> Pass:
    """Makes what was noted older by a part of the ageing time."""

    def let_pass(part: float) -> None:
        for key, note in connection.hgetall(schema.AGES).items():
            taken, seen, *pairs = map(int, note.split())
            passed = int(part * AGEING_MS)
            pairs[::2] = [since - passed for since in pairs[::2]]
            connection.hset(schema.AGES, key, " ".join(map(str, (taken, seen - passed, *pairs))))

    return let_pass


@pytest.fixture
def wait_long(let_pass: Pass) -> Look:
    """Until what waits now has waited long, with a look at the end: what comes then is new."""

    def wait_long(receiver: Receiver) -> None:
        let_pass(1)
        receiver.maintain()

    return wait_long


@pytest.fixture
def ageing(make_receiver: MakeReceiver, connection: redis.Redis) -> Receiver:
    receiver = make_receiver(ageing_ms=AGEING_MS)
    take(connection, receiver)
    return receiver


def texts(connection: redis.Redis, receiver: Receiver, most: int = 9) -> str:
    """The messages that the receiver takes, all of one letter or digit."""
    return "".join(text for _, _, text in take(connection, receiver, most))


def test_every_second_place_is_the_oldest_message_s_that_has_waited_long(
    connection: redis.Redis, ageing: Receiver, look: Look, wait_long: Look
) -> None:
    send(connection, "b", "1", "2", "3")
    look(ageing)
    wait_long(ageing)
    send(connection, "a", "x", "y", "z", "u", "v")
    look(ageing)
    assert texts(connection, ageing, 5) == "1x2y3"
    assert texts(connection, ageing) == "zuv"


def test_the_place_of_one_that_waits_comes_also_to_who_takes_one_at_a_time(
    connection: redis.Redis, ageing: Receiver, look: Look, wait_long: Look
) -> None:
    send(connection, "b", "1", "2")
    look(ageing)
    wait_long(ageing)
    send(connection, "a", *"wxyz")
    assert [texts(connection, ageing, 1) for _ in range(4)] == ["1", "w", "2", "x"]


def test_what_has_not_waited_long_enough_goes_by_priority(
    connection: redis.Redis, ageing: Receiver, look: Look, let_pass: Pass
) -> None:
    send(connection, "b", "1")
    look(ageing)
    let_pass(0.25)
    send(connection, "a", *"xyz")
    look(ageing)
    assert texts(connection, ageing, 4) == "xyz1"


def test_each_message_has_the_age_of_its_own_time_and_not_that_of_its_list(
    connection: redis.Redis, ageing: Receiver, look: Look, wait_long: Look
) -> None:
    send(connection, "b", "1", "2")
    look(ageing)
    wait_long(ageing)
    send(connection, "b", "3", "4")
    look(ageing)
    send(connection, "a", *"uvwxyz")
    assert texts(connection, ageing, 6) == "1u2vwx"


def test_of_old_messages_the_oldest_goes_first_whatever_its_priority(
    connection: redis.Redis, ageing: Receiver, look: Look, wait_long: Look, let_pass: Pass
) -> None:
    send(connection, "b", "1")
    look(ageing)
    let_pass(0.25)
    send(connection, "a", "x", "y")
    look(ageing)
    wait_long(ageing)
    send(connection, "b", "2")
    look(ageing)
    assert texts(connection, ageing) == "1xy2"


def test_what_a_worker_gives_back_is_as_old_as_before(
    connection: redis.Redis, ageing: Receiver, look: Look, wait_long: Look
) -> None:
    send(connection, "b", "1", "2", "3")
    look(ageing)
    wait_long(ageing)
    (first, *_), (second, *_) = take(connection, ageing, 2)
    send(connection, "b", "4")
    look(ageing)
    ageing.restore([first, second])
    send(connection, "a", *"uvwxyz")
    assert texts(connection, ageing, 8) == "1u2v3wxy"


def test_a_list_that_was_emptied_or_deleted_begins_anew(
    connection: redis.Redis, ageing: Receiver, look: Look, wait_long: Look
) -> None:
    send(connection, "b", "1", "2")
    look(ageing)
    connection.delete("b")
    look(ageing)
    assert not connection.hexists(schema.AGES, "b")
    wait_long(ageing)
    send(connection, "b", "3")
    send(connection, "a", "x")
    look(ageing)
    assert texts(connection, ageing) == "x3"


def test_ages_outlive_the_worker_that_noted_them(
    connection: redis.Redis, ageing: Receiver, make_receiver: MakeReceiver, look: Look, let_pass: Pass
) -> None:
    send(connection, "b", "1")
    look(ageing)
    ageing.close()
    let_pass(1)
    send(connection, "a", "x")
    assert texts(connection, make_receiver("r2", ageing_ms=AGEING_MS)) == "1x"


@pytest.mark.parametrize("spoil", ["another type", "no numbers"])
def test_a_note_that_cannot_be_used_leaves_the_order_of_priorities(
    connection: redis.Redis, ageing: Receiver, look: Look, spoil: str, wait_long: Look
) -> None:
    send(connection, "b", "1")
    look(ageing)
    wait_long(ageing)
    if spoil == "another type":
        connection.delete(schema.AGES)
        connection.set(schema.AGES, "x")
    else:
        connection.hset(schema.AGES, "b", "?")
    send(connection, "a", "x")
    ((tag, *_), (other, *_)) = take(connection, ageing)
    assert (tag, other) == ("0 a", "1 b")
    ageing.restore([tag, other])
    look(ageing)
    assert connection.hgetall(schema.AGES).keys() == {b"a", b"b"}
    assert texts(connection, ageing) == "x1"


def test_the_note_of_a_list_that_is_never_empty_stays_short(
    connection: redis.Redis, make_receiver: MakeReceiver, look: Look
) -> None:
    receiver = make_receiver(ageing_ms=8)
    take(connection, receiver)
    for number in range(150):
        send(connection, "b", str(number))
        time.sleep(0.002)
        look(receiver)
    note = connection.hget(schema.AGES, "b")
    assert len(note.split()) < 210
    assert note.split()[-1] == b"150"
    assert connection.ttl(schema.AGES) > 0
