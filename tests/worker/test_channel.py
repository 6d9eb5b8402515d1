import socket
import threading
from collections.abc import Iterator

import pytest

from orcd.errors import OrcdError
from worker import contract
from worker.channel import MAX_UNSENT_BYTES, Channel
from worker.contract import Abort, Fatal, FrameSplitter, Shutdown


@pytest.fixture
def pipe() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours), theirs


def test_requests_arrive_in_order_however_they_are_cut(pipe: tuple[Channel, socket.socket]):
    channel, other = pipe
    wire = contract.encode(Abort("a")) + contract.encode(Abort("b", 1)) + contract.encode(Shutdown())
    received = []
    for start in range(0, len(wire), 3):
        other.sendall(wire[start : start + 3])
        received += channel.receive(1)
    assert received == [Abort("a"), Abort("b", 1), Shutdown()]


def test_receiving_gives_up_after_its_time(pipe: tuple[Channel, socket.socket]):
    assert pipe[0].receive(0.01) == []
    assert pipe[0].receive(-5) == []


def test_what_does_not_fit_the_socket_is_congestion_and_goes_out_later(pipe: tuple[Channel, socket.socket]):
    channel, other = pipe
    big = Fatal("INTERNAL", "x" * (MAX_UNSENT_BYTES + 1_000_000))
    channel.send(big)
    channel.send(Fatal("INTERNAL", "last"))
    assert channel.is_congested
    received: list[contract.Event] = []

    def read() -> None:
        splitter = FrameSplitter()
        while len(received) < 2:
            received.extend(map(contract.decode_event, splitter.feed(other.recv(1 << 20))))

    reader = threading.Thread(target=read)
    reader.start()
    while channel.is_congested:
        channel.receive(0.1)
    channel.flush(60)
    reader.join(60)
    assert received == [big, Fatal("INTERNAL", "last")]


def test_flush_gives_up_on_a_reader_that_does_not_read(pipe: tuple[Channel, socket.socket]):
    channel, _ = pipe
    channel.send(Fatal("INTERNAL", "x" * MAX_UNSENT_BYTES))
    channel.flush(0.05)


def test_the_end_of_the_other_side_closes_the_channel(pipe: tuple[Channel, socket.socket]):
    channel, other = pipe
    other.sendall(contract.encode(Shutdown()))
    other.close()
    assert channel.receive(1) == [Shutdown()]
    assert not channel.is_closed
    assert channel.receive(1) == []
    assert channel.is_closed
    channel.send(Fatal("INTERNAL", "nobody hears this"))
    assert not channel.is_congested


def test_stop_reading_wakes_a_receive_and_still_sends(pipe: tuple[Channel, socket.socket]):
    channel, other = pipe
    timer = threading.Timer(0.05, channel.stop_reading)
    timer.start()
    assert channel.receive(10) == []
    assert channel.is_closed
    channel.send(Fatal("INTERNAL", "the final frame"))
    assert b"the final frame" in other.recv(1000)
    timer.join()


def test_nonsense_is_a_protocol_error(pipe: tuple[Channel, socket.socket]):
    channel, other = pipe
    other.sendall(contract.encode(Fatal("INTERNAL", "engines do not get these")))
    with pytest.raises(OrcdError, match="protocol error"):
        channel.receive(1)
