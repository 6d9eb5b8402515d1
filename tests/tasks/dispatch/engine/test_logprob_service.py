"""The child answers one call after the other until its parent has gone."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

import msgspec

from tasks.dispatch.engine.logprob_process import ANSWER, CALL, receive
from tasks.dispatch.engine.logprob_service import serve
from tasks.dispatch.engine.token_spellings import TokenSpellings
from tests.worker.logprob_records import TokenLogprobs, record


def test_calls_are_answered_in_order_until_the_other_end_is_closed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=serve, args=(theirs, TokenSpellings([b"a", b"b"])))
        thread.start()
        assert ANSWER.unpack(receive(ours, ANSWER.size)) == (0,), "the vocabulary is there"
        for token_id in (0, 1):
            records = record(TokenLogprobs(-1.0, (1,), (-0.5,)), 1)
            ours.sendall(CALL.pack(1, 1, len(records)) + token_id.to_bytes(4, "little") + records)
            (size,) = ANSWER.unpack(receive(ours, ANSWER.size))
            assert bytes(receive(ours, size)).startswith(b'[{"id":%d,"logprob":-1.0,"top":{"1":-0.5}' % token_id)
        ours.close()
        thread.join(60)
        assert not thread.is_alive()


def test_the_program_ends_with_its_parent_and_says_nothing_of_it() -> None:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-P", "-m", "tasks.dispatch.engine.logprob_service", str(theirs.fileno())]
    with theirs:
        child = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    with ours, child:
        ours.close()
        _, said = child.communicate(msgspec.msgpack.encode([b"a", b"b"]), timeout=120)
        assert (child.returncode, said) == (0, b"")
