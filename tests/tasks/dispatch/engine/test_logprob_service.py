"""The child answers one call after the other until its parent has gone."""

from __future__ import annotations

import mmap
import socket
import subprocess
import sys
import threading

import msgspec

from tasks.dispatch.engine.engine_run import memory_file
from tasks.dispatch.engine.logprob_process import CALL_BYTES, ID_BYTES, NUMBER, RESULT, receive
from tasks.dispatch.engine.logprob_service import serve
from tasks.dispatch.engine.token_spellings import TokenSpellings
from tests.worker.logprob_records import TokenLogprobs, record


def test_calls_are_answered_in_order_until_the_other_end_is_closed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, mmap.mmap(-1, CALL_BYTES + 1000) as shared:
        thread = threading.Thread(target=serve, args=(theirs, shared, TokenSpellings([b"a", b"b"])))
        thread.start()
        assert NUMBER.unpack(receive(ours, NUMBER.size)) == (0,), "the vocabulary is there"
        records = record(TokenLogprobs(-1.0, (1,), (-0.5,)), 1)
        for token_ids in ((0,), (1, 0)):
            content = b"".join(token_id.to_bytes(ID_BYTES, "little") + records for token_id in token_ids)
            shared[: len(content)] = content
            ours.sendall(NUMBER.pack(len(token_ids)) + RESULT.pack(1, 1, len(records)) * len(token_ids))
            at = CALL_BYTES
            for token_id, (size,) in zip(
                token_ids, NUMBER.iter_unpack(receive(ours, NUMBER.size * len(token_ids))), strict=True
            ):
                assert shared[at : at + size].startswith(b'[{"id":%d,"logprob":-1.0,"top":{"1":-0.5}' % token_id)
                at += size
        ours.close()
        thread.join(60)
        assert not thread.is_alive()


def test_the_program_ends_with_its_parent_and_says_nothing_of_it() -> None:
    ours, theirs = socket.socketpair()
    with theirs, memory_file("orcd-logprobs") as shared:
        shared.truncate(CALL_BYTES + 1000)
        fds = [theirs.fileno(), shared.fileno()]
        command = [sys.executable, "-P", "-m", "tasks.dispatch.engine.logprob_service", *map(str, fds)]
        child = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    with ours, child:
        ours.close()
        _, said = child.communicate(msgspec.msgpack.encode([b"a", b"b"]), timeout=120)
        assert (child.returncode, said) == (0, b"")
