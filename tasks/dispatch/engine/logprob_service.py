"""``python -P -m tasks.dispatch.engine.logprob_service FD < PIECES``: the child of a `LogprobProcess`."""

from __future__ import annotations

import array
import gc
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from tasks.dispatch.engine.logprob_process import ANSWER, CALL, receive
from tasks.dispatch.engine.reported_logprobs import ReportedLogprobs
from tasks.dispatch.engine.token_spellings import TokenSpellings


def serve(connection: socket.socket, spellings: TokenSpellings) -> None:
    """Answer calls until the other end is closed."""
    with suppress(EOFError, OSError):
        connection.sendall(ANSWER.pack(0))
        while True:
            num_ids, num_top, num_bytes = CALL.unpack(receive(connection, CALL.size))
            ids = array.array("i", bytes(receive(connection, array.array("i").itemsize * num_ids))).tolist()
            text = bytes(ReportedLogprobs(ids, num_top, bytes(receive(connection, num_bytes)), spellings).json())
            connection.sendall(ANSWER.pack(len(text)))
            connection.sendall(text)


def main(argv: Sequence[str]) -> int:
    """Read the vocabulary, then serve; returns the exit code."""
    (fd,) = argv
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal, or a container, sends them to its parent as well
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(fd)) as connection:
        spellings = TokenSpellings(msgspec.msgpack.decode(sys.stdin.buffer.read(), type=list[bytes]))
        gc.freeze()
        serve(connection, spellings)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
