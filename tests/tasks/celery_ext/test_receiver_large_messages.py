"""F16: messages of any size cost a worker no more memory than one that it may read."""

from __future__ import annotations

import pytest
import redis

from orcd.store import schema
from orcd.store.dead_letters import DeadLetters
from tasks.celery_ext import receiver as receivers
from tasks.celery_ext.receiver import Receiver
from tests.tasks.celery_ext.taken_messages import send, take


@pytest.fixture
def at_most_100_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receivers, "MAX_MESSAGE_BYTES", 100)


@pytest.mark.usefixtures("at_most_100_bytes")
def test_a_message_that_is_too_long_never_leaves_redis(
    connection: redis.Redis, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receivers, "DEAD_LETTER_BYTES", 10)
    send(connection, "a", "1", "x" * 101, "y" * 100)
    assert take(connection, receiver) == [("0 a", "a", "1")], "all that was looked at counts"
    (letter,) = DeadLetters(connection)
    assert (letter.reason, letter.list_name) == ("it has 101 bytes; at most 100 are read", "a")
    assert (letter.num_bytes, letter.num_kept_bytes) == (101, 10)
    assert take(connection, receiver) == [("1 a", "a", "y" * 100)]
    assert connection.hlen(schema.unacked_key("r1")) == 2
    assert 0 < connection.ttl(schema.DEAD) <= receivers.DEAD_LETTER_TTL_S


@pytest.mark.usefixtures("at_most_100_bytes")
def test_a_message_that_is_too_long_is_taken_from_no_other_list_than_its_own(
    connection: redis.Redis, receiver: Receiver
) -> None:
    send(connection, "a", "x" * 101)
    send(connection, "b", "1")
    connection.set(schema.DEAD, "no stream")
    assert take(connection, receiver) == []
    assert take(connection, receiver) == [("0 b", "b", "1")]
    assert [letter.list_name for letter in DeadLetters(connection)] == ["a"]


@pytest.mark.usefixtures("at_most_100_bytes")
def test_no_more_is_taken_at_once_than_a_little_over_one_message(connection: redis.Redis, receiver: Receiver) -> None:
    send(connection, "a", *(letter * 80 for letter in "abcde"))
    assert [text[0] for _, _, text in take(connection, receiver)] == ["a", "b"]
    assert [text[0] for _, _, text in take(connection, receiver)] == ["c", "d"]
    assert [tag for tag, _, _ in take(connection, receiver)] == ["4 a"]
