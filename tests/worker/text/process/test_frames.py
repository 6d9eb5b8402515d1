"""Calls and answers between a text process and its child."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from worker.text.process import frames


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_call_arrives_as_it_was_sent_whatever_its_numbers(ends: tuple[socket.socket, socket.socket]) -> None:
    messages = [{"role": "user", "content": "é\x00", "n": 2**80, "deep": [[None, 0.5]]}]
    call = frames.Render(messages, None, True, False, None)
    ends[0].sendall(frames.encode(call))
    assert frames.receive_call(ends[1]) == call


@pytest.mark.parametrize(
    "answer", [frames.Done(), frames.Text("a\U0001f438"), frames.Ids([1, 2]), frames.Refused("X", "y")]
)
def test_an_answer_arrives_as_it_was_sent(ends: tuple[socket.socket, socket.socket], answer: frames.Answer) -> None:
    ends[0].sendall(frames.encode(answer))
    assert frames.receive_answer(ends[1], time.monotonic() + 60) == answer


def test_an_answer_that_is_there_is_read_also_after_the_deadline(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].sendall(frames.encode(frames.Done()))
    assert frames.receive_answer(ends[1], time.monotonic() - 5) == frames.Done()


def test_an_answer_that_does_not_come_is_waited_for_until_the_deadline(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ends[0].sendall(frames.encode(frames.Done())[:-1])
    with pytest.raises(TimeoutError):
        frames.receive_answer(ends[1], time.monotonic() + 0.05)


def test_the_end_of_the_other_side_is_noticed(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].sendall(frames.encode(frames.Done())[:-1])
    ends[0].close()
    with pytest.raises(EOFError):
        frames.receive_answer(ends[1], time.monotonic() + 60)


@pytest.mark.parametrize("sent", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02{}", b"\x00\x00\x00\x02\xff\xff"])
def test_what_is_no_answer_is_an_error(ends: tuple[socket.socket, socket.socket], sent: bytes) -> None:
    ends[0].sendall(sent)
    with pytest.raises(ValueError):
        frames.receive_answer(ends[1], time.monotonic() + 60)


def test_no_frame_is_made_of_what_is_no_plain_json() -> None:
    for value in ("\ud800", object()):
        with pytest.raises((TypeError, ValueError)):
            frames.encode(frames.Render([{"content": value}], None, True, False, None))
