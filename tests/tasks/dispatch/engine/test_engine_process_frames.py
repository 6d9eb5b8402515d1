"""Frames for the engine are sent by whoever has them, and by a thread where the engine does not take them at once."""

from __future__ import annotations

import socket
import threading
from select import select

from tasks.dispatch.engine.engine_process import FrameWriter
from worker import contract
from worker.contract import Add, Sampling

ADDS = [Add(f"#{number}", tuple(range(1000)), Sampling(max_tokens=8)) for number in range(2000)]


def test_frames_come_in_order_also_where_they_are_not_taken_at_once() -> None:
    ours, theirs = socket.socketpair()
    read: list[contract.Request] = []

    def take() -> None:
        splitter = contract.FrameSplitter()
        while len(read) < len(ADDS):
            read.extend(contract.decode_request(bytes(body)) for body in splitter.feed(theirs.recv(1 << 16)))

    taking = threading.Thread(target=take)
    with ours, theirs:
        writer = FrameWriter(ours, lambda: None, lambda *_: None)
        for number, add in enumerate(ADDS):
            if number == len(ADDS) // 2:
                assert writer._num_unsent > 0
                taking.start()  # from now on some are taken while others wait
            writer.put(add)
        taking.join(60)
        writer.close()
    assert read == ADDS


def test_a_frame_that_is_taken_at_once_needs_no_thread() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        writer = FrameWriter(ours, lambda: None, lambda *_: None)
        writer.close()
        writer.put(ADDS[0])
        assert theirs.recv(1 << 16) == contract.encode(ADDS[0])


def test_a_run_that_has_ended_harms_nobody_who_sends() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        writer = FrameWriter(ours, lambda: None, lambda *_: None)
        theirs.close()
        for add in ADDS[:3]:
            writer.put(add)
        writer.close()
    writer.put(ADDS[0])


def test_who_sends_a_frame_announces_it_before_the_engine_can_have_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        writer = FrameWriter(ours, lambda: None, lambda *_: None)
        seen: list[list[socket.socket]] = []
        writer.put(ADDS[0], announce=lambda: seen.append(select([theirs], [], [], 0)[0]))
        assert seen == [[]], "nothing has come by then"
        assert theirs.recv(1 << 16) == contract.encode(ADDS[0])
        writer.close()
