"""Messages between queue and acknowledgement: none is lost, whoever dies and whatever Redis refuses."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis

from orcd.store import schema
from tasks.celery_ext import receiver as receivers
from tasks.celery_ext.receiver import Receiver
from tests.tasks.celery_ext.taken_messages import MakeReceiver, send, take, waiting


@pytest.fixture
def full(connection: redis.Redis) -> Iterator[None]:
    """Redis has room for nothing more."""
    connection.config_set("maxmemory", 1)
    yield
    connection.config_set("maxmemory", 0)


def noted(connection: redis.Redis, name: str = "r1") -> dict[bytes, bytes]:
    return connection.hgetall(schema.unacked_key(name))


def test_messages_come_in_the_order_of_the_lists_and_each_has_a_tag_of_its_own(
    connection: redis.Redis, receiver: Receiver
) -> None:
    send(connection, "b", "3", "4")
    send(connection, "a", "1", "2", "2")
    assert take(connection, receiver, 4) == [("0 a", "a", "1"), ("1 a", "a", "2"), ("2 a", "a", "2"), ("3 b", "b", "3")]
    assert take(connection, receiver, 4) == [("4 b", "b", "4")]
    assert take(connection, receiver, 4) == []
    assert len(noted(connection)) == 5
    assert connection.zrange(schema.RECEIVERS, 0, -1) == [b"r1"]


def test_what_is_no_text_is_taken_as_it_is(connection: redis.Redis, receiver: Receiver) -> None:
    connection.lpush("a", b"\xff\x00\n", b"")
    answer = connection.execute_command(*receiver.take_command(["a"], 9))
    assert [text for _, _, text in receiver.taken(answer)] == [b"\xff\x00\n", b""]
    receiver.close()
    assert connection.lrange("a", 0, -1) == [b"", b"\xff\x00\n"]


def test_acknowledgements_go_with_the_next_command_or_when_they_are_flushed(
    connection: redis.Redis, receiver: Receiver
) -> None:
    send(connection, "a", "1", "2", "3")
    (first, _, _), (second, _, _), (third, _, _) = take(connection, receiver)
    receiver.ack(first)
    assert len(noted(connection)) == 3
    take(connection, receiver)
    assert noted(connection).keys() == {second.encode(), third.encode()}
    receiver.ack(second)
    receiver.flush()
    assert noted(connection).keys() == {third.encode()}


def test_a_message_stays_in_its_list_when_it_cannot_be_noted(
    connection: redis.Redis, receiver: Receiver, request: pytest.FixtureRequest
) -> None:
    send(connection, "a", "1", "2")
    request.getfixturevalue("full")
    with pytest.raises(redis.ResponseError, match="used memory"):
        take(connection, receiver)
    assert waiting(connection, "a") == ["1", "2"]
    assert not noted(connection)


def test_a_receiver_that_closes_puts_the_rest_back_in_order(connection: redis.Redis, receiver: Receiver) -> None:
    send(connection, "a", *map(str, range(12)))
    messages = take(connection, receiver, 11)
    receiver.ack(messages[4][0])
    receiver.close()
    assert waiting(connection, "a") == ["0", "1", "2", "3", *map(str, range(5, 12))]
    assert not noted(connection)
    assert connection.exists(schema.RECEIVERS) == 0


def test_what_came_with_an_answer_that_was_lost_is_put_back_too(connection: redis.Redis, receiver: Receiver) -> None:
    send(connection, "a", "1", "2", "3")
    (tag, _, _) = take(connection, receiver, 1)[0]
    receiver.ack(tag)
    connection.execute_command(*receiver.take_command(["a"], 9))
    receiver.close()
    assert waiting(connection, "a") == ["2", "3"]


def test_one_message_can_be_put_back(connection: redis.Redis, receiver: Receiver) -> None:
    send(connection, "a", "1", "2")
    (tag, _, _), _ = take(connection, receiver)
    receiver.restore([tag])
    receiver.restore([tag])
    assert waiting(connection, "a") == ["1"]
    assert len(noted(connection)) == 1


@pytest.mark.parametrize("num_messages", [1, 2500])
def test_others_put_back_what_a_dead_receiver_had_when_its_lease_has_run_out(
    connection: redis.Redis, make_receiver: MakeReceiver, num_messages: int
) -> None:
    dead, living = make_receiver("dead"), make_receiver("living")
    send(connection, "a", *map(str, range(num_messages)))
    take(connection, dead, num_messages)
    send(connection, "a", "later")
    living.maintain()
    assert waiting(connection, "a") == ["later"]
    connection.zadd(schema.RECEIVERS, {"dead": 1})  # it runs out
    living._next_maintenance = 0.0
    living.maintain()
    assert waiting(connection, "a") == [*map(str, range(num_messages)), "later"]
    assert not noted(connection, "dead")
    assert connection.exists(schema.RECEIVERS) == 0, "the living one holds nothing"


def test_a_receiver_that_renews_its_lease_keeps_its_messages(
    connection: redis.Redis, make_receiver: MakeReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    slow, other = make_receiver("slow"), make_receiver("other")
    send(connection, "a", "1")
    take(connection, slow)
    for _ in range(150):  # seconds that pass for all: two leases and a half
        slow.maintain()
        other.maintain()
        clock[0] += 1
        connection.zincrby(schema.RECEIVERS, -1000, "slow")
    assert len(noted(connection, "slow")) == 1


def test_an_acknowledgement_that_comes_after_the_lease_ran_out_does_no_harm(
    connection: redis.Redis, make_receiver: MakeReceiver
) -> None:
    slow, other = make_receiver("slow", lease_ms=1), make_receiver("other")
    send(connection, "a", "1")
    ((tag, _, _),) = take(connection, slow)
    time.sleep(0.01)
    other.maintain()
    assert [text for _, _, text in take(connection, other)] == ["1"]
    slow.ack(tag)
    slow.flush()
    slow.close()
    assert len(noted(connection, "other")) == 1


def test_an_idle_receiver_writes_nothing(connection: redis.Redis, receiver: Receiver) -> None:
    before = connection.info("persistence")["rdb_changes_since_last_save"]
    for _ in range(3):
        take(connection, receiver)
        receiver._next_maintenance = 0.0
        receiver.maintain()
    assert connection.info("persistence")["rdb_changes_since_last_save"] == before


def test_nothing_is_lost_when_redis_is_too_full_to_put_it_back(
    connection: redis.Redis, make_receiver: MakeReceiver, request: pytest.FixtureRequest
) -> None:
    dead, living = make_receiver("dead", lease_ms=1), make_receiver("living")
    send(connection, "a", "1", "2")
    take(connection, dead)
    time.sleep(0.01)
    request.getfixturevalue("full")
    with pytest.raises(redis.ResponseError):
        living.maintain()
    assert len(noted(connection, "dead")) == 2


def test_a_dead_letter_keeps_where_it_came_from_and_its_bytes(connection: redis.Redis, receiver: Receiver) -> None:
    connection.lpush("orcd.demo:5", b"\xff no message")
    ((tag, _, _),) = receiver.taken(connection.execute_command(*receiver.take_command(["orcd.demo:5"], 1)))
    assert receiver.dead_letter(tag, "unreadable")
    assert not receiver.dead_letter(tag, "unreadable"), "only once"
    assert not noted(connection)
    ((_, letter),) = connection.xrange(schema.DEAD)
    assert letter == {
        b"reason": b"unreadable",
        b"list": b"orcd.demo:5",
        b"num_bytes": b"12",
        b"text": b"\xff no message",
    }
    assert 0 < connection.ttl(schema.DEAD) <= receivers.DEAD_LETTER_TTL_S


def test_dead_letters_are_bounded_in_number_and_size(
    connection: redis.Redis, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receivers, "MAX_DEAD_LETTERS", 3)
    monkeypatch.setattr(receivers, "DEAD_LETTER_BYTES", 10)
    send(connection, "a", *(f"{number} {'x' * 50}" for number in range(5)))
    for tag, _, _ in take(connection, receiver):
        receiver.dead_letter(tag, "unreadable")
    texts = [letter[b"text"] for _, letter in connection.xrange(schema.DEAD)]
    assert texts == [b"2 xxxxxxxx", b"3 xxxxxxxx", b"4 xxxxxxxx"]


def test_dead_letters_find_their_place_when_the_key_has_another_type(
    connection: redis.Redis, receiver: Receiver
) -> None:
    connection.set(schema.DEAD, "no stream")
    send(connection, "a", "1")
    ((tag, _, _),) = take(connection, receiver)
    assert receiver.dead_letter(tag, "unreadable")
    assert connection.xlen(schema.DEAD) == 1


def test_messages_of_senders_with_kombu_s_own_lists_are_gathered_in_order(
    connection: redis.Redis, receiver: Receiver
) -> None:
    send(connection, "orcd:3", "1")
    send(connection, "orcd\x06\x163", *map(str, range(2, 2500)))
    send(connection, "orcd\x06\x169", "last")
    take(connection, receiver, 0, ("orcd", "orcd:3", "orcd:9"))
    receiver.maintain()
    assert waiting(connection, "orcd:3") == [*map(str, range(1, 2500))]
    assert waiting(connection, "orcd:9") == ["last"]
    assert not connection.exists("orcd\x06\x163", "orcd\x06\x169")


def test_lists_that_cannot_be_gathered_from_or_into_keep_back_no_other(
    connection: redis.Redis, receiver: Receiver
) -> None:
    connection.set("orcd\x06\x161", "of another type")
    connection.set("orcd:2", "of another type")
    send(connection, "orcd\x06\x162", "stays")
    send(connection, "orcd\x06\x163", "comes")
    take(connection, receiver, 0, ("orcd:1", "orcd:2", "orcd:3"))
    receiver.maintain()
    assert waiting(connection, "orcd:3") == ["comes"]
    assert waiting(connection, "orcd\x06\x162") == ["stays"]


def test_a_user_who_may_not_gather_takes_what_is_in_our_lists(redis_url: str, connection: redis.Redis) -> None:
    connection.acl_setuser("old", enabled=True, passwords=["+pw"], keys=["orcd", "orcd:*"], commands=["+@all"])
    with redis.Redis.from_url(redis_url, username="old", password="pw") as old:
        receiver = Receiver("r", 10_000, old)
        send(connection, "orcd", "1")
        take(connection, receiver, 0, ("orcd", "orcd:3"))
        receiver.maintain()
        assert [text for _, _, text in take(old, receiver, 9, ("orcd", "orcd:3"))] == ["1"]
    connection.acl_deluser("old")


def test_all_keys_have_the_prefix(connection: redis.Redis, make_receiver: MakeReceiver) -> None:
    receiver = make_receiver(key_prefix="ours-")
    send(connection, "ours-a", "1", "2")
    messages = take(connection, receiver, keys=("ours-a",))
    receiver.dead_letter(messages[0][0], "unreadable")
    assert all(key.startswith(b"ours-") for key in connection.scan_iter())
    receiver.close()
    assert waiting(connection, "ours-a") == ["2"]
    assert not connection.exists("ours-orcd:receivers")
