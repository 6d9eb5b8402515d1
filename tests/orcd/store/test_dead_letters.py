"""Dead letters: what is told of them, and that a message is sent again as it was."""

from __future__ import annotations

import pytest
import redis

from orcd.errors import InvalidRequest
from orcd.store import dead_letters, schema
from orcd.store.dead_letters import DeadLetter, DeadLetters

TEXT = b'{"body": "\xff secret"}'
FIELDS = {"reason": "it is not JSON in UTF-8", "list": "orcd:5", "num_bytes": len(TEXT), "text": TEXT, "id": "a-1"}


@pytest.fixture
def letters(connection: redis.Redis) -> DeadLetters:
    return DeadLetters(connection)


def add(connection: redis.Redis, entry_id: str = "1767225600000-0", **fields: str | bytes | int) -> str:
    connection.xadd(schema.DEAD, FIELDS | fields, entry_id)
    return entry_id


def test_a_dead_letter_is_told_without_what_the_message_says(connection: redis.Redis, letters: DeadLetters) -> None:
    letter_id = add(connection)
    expected = DeadLetter(letter_id, 1767225600000, "orcd:5", "it is not JSON in UTF-8", len(TEXT), len(TEXT), "a-1")
    assert list(letters) == [expected]
    assert letters.get(letter_id) == (expected, TEXT)
    assert "secret" not in repr(expected)


def test_all_are_listed_in_order_also_over_many_pages(
    connection: redis.Redis, letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "PAGE", 3)
    ids = [add(connection, f"{number}-{number % 2}") for number in range(1, 9)]
    assert [letter.id for letter in letters] == ids


def test_there_may_be_none(letters: DeadLetters) -> None:
    assert list(letters) == []


def test_one_that_is_sent_again_lies_where_it_came_from_byte_for_byte(
    connection: redis.Redis, letters: DeadLetters
) -> None:
    letter_id = add(connection)
    connection.lpush("orcd:5", "before")
    assert letters.retry(letter_id) == "orcd:5"
    assert connection.lrange("orcd:5", 0, -1) == [TEXT, b"before"], "it is taken after those that wait"
    assert list(letters) == []


def test_one_can_be_sent_to_the_queue_of_the_application_that_it_belongs_to(
    connection: redis.Redis, letters: DeadLetters
) -> None:
    assert letters.retry(add(connection), "celery") == "celery"
    assert connection.lrange("celery", 0, -1) == [TEXT]
    assert not connection.exists("orcd:5")


def test_one_that_was_cut_off_is_not_sent_again(connection: redis.Redis, letters: DeadLetters) -> None:
    letter_id = add(connection, num_bytes=len(TEXT) + 1)
    with pytest.raises(InvalidRequest, match="only the beginning"):
        letters.retry(letter_id)
    assert len(list(letters)) == 1
    assert not connection.exists("orcd:5")


def test_one_stays_when_its_list_cannot_be_written(connection: redis.Redis, letters: DeadLetters) -> None:
    letter_id = add(connection)
    connection.set("orcd:5", "no list")
    with pytest.raises(redis.ResponseError):
        letters.retry(letter_id)
    assert len(list(letters)) == 1


def test_one_that_is_dropped_is_gone(connection: redis.Redis, letters: DeadLetters) -> None:
    kept, dropped = add(connection, "1-1"), add(connection, "2-1")
    letters.drop(dropped)
    assert [letter.id for letter in letters] == [kept]


@pytest.mark.parametrize("method", ["get", "retry", "drop"])
@pytest.mark.parametrize("letter_id", ["5-5", "nonsense", "-", "9" * 30 + "-0"])
def test_an_id_that_is_none_is_an_error_by_name(letters: DeadLetters, method: str, letter_id: str) -> None:
    with pytest.raises(InvalidRequest, match=r"dead letter.*orcd dead list"):
        getattr(letters, method)(letter_id)


def test_an_entry_that_another_version_wrote_can_be_looked_at(connection: redis.Redis, letters: DeadLetters) -> None:
    connection.xadd(schema.DEAD, {"something": b"\xff"}, "1-1")
    (letter,) = letters
    assert letter == DeadLetter("1-1", 1, "", "", 0, 0, "")
