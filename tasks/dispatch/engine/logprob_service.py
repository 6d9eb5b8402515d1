"""``python -P -m tasks.dispatch.engine.logprob_service FD SHARED_FD < PIECES``: the child of a `LogprobProcess`."""

from __future__ import annotations

import array
import gc
import mmap
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from tasks.dispatch.engine.logprob_process import CALL_BYTES, ID_BYTES, NUMBER, RESULT, receive
from tasks.dispatch.engine.reported_logprobs import ReportedLogprobs
from tasks.dispatch.engine.token_spellings import TokenSpellings


def serve(connection: socket.socket, shared: mmap.mmap, spellings: TokenSpellings) -> None:
    """Answer calls until the other end is closed."""
    with suppress(EOFError, OSError):
        connection.sendall(NUMBER.pack(0))
        while True:
            (num_results,) = NUMBER.unpack(receive(connection, NUMBER.size))
            start, end, sizes = 0, CALL_BYTES, list[bytes]()
            for num_ids, num_top, num_bytes in RESULT.iter_unpack(receive(connection, RESULT.size * num_results)):
                records_at = start + ID_BYTES * num_ids
                ids = array.array("i", shared[start:records_at]).tolist()
                start = records_at + num_bytes
                text = bytes(ReportedLogprobs(ids, num_top, shared[records_at:start], spellings).json())
                if end + len(text) > len(shared):
                    text = b""
                shared[end : end + len(text)] = text
                end += len(text)
                sizes.append(NUMBER.pack(len(text)))
            connection.sendall(b"".join(sizes))


def main(argv: Sequence[str]) -> int:
    """Read the vocabulary, then serve; returns the exit code."""
    fd, shared_fd = argv
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal, or a container, sends them to its parent as well
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(fd)) as connection, mmap.mmap(int(shared_fd), 0) as shared:
        spellings = TokenSpellings(msgspec.msgpack.decode(sys.stdin.buffer.read(), type=list[bytes]))
        gc.freeze()
        serve(connection, shared, spellings)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
