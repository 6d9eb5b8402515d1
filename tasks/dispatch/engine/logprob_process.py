"""Log probabilities of results are made into JSON by another process, as here all threads would wait for that."""

from __future__ import annotations

import array
import mmap
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import msgspec

from orcd.settings import inherited_environment
from tasks.dispatch.engine.engine_run import memory_file
from worker.text import threads

ID_BYTES = 4
FEWEST_NUMBERS = 200
"""What has fewer numbers is made into JSON here as fast as the process could be asked."""
TURN_S = 0.1
"""Who has waited so long for the answers of others is not answered: it takes no longer to do without."""
ANSWER_S = 5
"""An answer that takes longer does not come any more."""
RESTART_S = 10.0
"""After the process has ended, another one is started no sooner."""
NUMBER = struct.Struct("<I")
"""A call is a number of results, then a `RESULT` for each; its answer a number for each: how many bytes its JSON has, 0
if there was no room for it. The first answer, of one number, comes when the vocabulary is there."""
RESULT = struct.Struct("<III")
"""How many tokens, alternatives of each and bytes of records there are."""
CALL_BYTES, SHARED_BYTES = 8 << 20, 40 << 20
"""Of the memory that both processes share: the ids of 4 bytes and the records of each result are at its beginning, and
behind so many bytes the JSON of each. Each part that went through the socket would cost a turn of the interpreter."""

Reported = tuple[Sequence[int], int, bytes]
"""Ids of tokens, alternatives of each, and their records."""


class LogprobProcess:
    """``python -m tasks.dispatch.engine.logprob_service``, which knows the vocabulary of one model.

    It is started by the first call. Until it has read the vocabulary, and once it has ended, calls are not answered.
    Safe to use from several threads; `close` it.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        """``pieces`` are the bytes of each token by its id: the model's file may be another one meanwhile."""
        self._pieces = pieces
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._shared: mmap.mmap | None = None
        self._is_ready = self._is_closed = False
        self._start_at = 0.0

    @property
    def pid(self) -> int | None:
        """Process id of the child, None while there is none."""
        return self._child.pid if self._child else None

    def json(self, ids: Sequence[int], num_top: int, records: bytes) -> bytes | None:
        """What `ReportedLogprobs.json` makes of these; None if it cannot be had from the process now."""
        [made] = self.json_of_all([(ids, num_top, records)])
        return made

    def json_of_all(self, results: Sequence[Reported]) -> list[bytes | None]:
        """That of each of the results."""
        made: list[bytes | None] = [None] * len(results)
        waiting = [place for place, result in enumerate(results) if _is_worth_asking(result)]
        if not waiting or not self._lock.acquire(timeout=TURN_S):
            return made
        try:
            while waiting and self._start():
                asked = _that_fit(waiting, results)
                for place, text in zip(asked, self._ask([results[place] for place in asked]), strict=True):
                    made[place] = text
                # The first had all of the room. Of the others some may have found none: they come first now.
                waiting = [place for place in asked[1:] if made[place] is None] + waiting[len(asked) :]
        except (OSError, EOFError, MemoryError):  # what it may still say would be taken for the next answer
            self._end()
        finally:
            self._lock.release()
        return made

    def close(self) -> None:
        """End the process, if there is one, for good. A call that waits for it is not answered."""
        self._is_closed = True
        child = self._child
        if child is not None:
            child.kill()
        with self._lock:
            self._end()

    def _start(self) -> bool:
        """Whether it can be asked. Raises OSError or EOFError."""
        if self._connection is None:
            if self._is_closed or time.monotonic() < self._start_at:
                return False
            self._start_at = time.monotonic() + RESTART_S
            self._spawn()
        assert self._connection is not None
        if not self._is_ready:
            try:
                first = self._connection.recv(NUMBER.size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            if not first:
                raise EOFError
            self._is_ready = True
        return True

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        self._connection = ours
        limit = struct.pack("ll", ANSWER_S, 0)  # a timeval: seconds, microseconds
        with theirs, memory_file("orcd-vocabulary") as vocabulary, memory_file("orcd-logprobs") as shared:
            shared.truncate(SHARED_BYTES)
            self._shared = mmap.mmap(shared.fileno(), SHARED_BYTES)
            vocabulary.write(msgspec.msgpack.encode(self._pieces))
            vocabulary.seek(0)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            fds = [theirs.fileno(), shared.fileno()]
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "tasks.dispatch.engine.logprob_service", *map(str, fds)],
                env=inherited_environment(),
                pass_fds=fds,
                stdin=vocabulary,
                stdout=subprocess.DEVNULL,
            )
        # One that dies while nobody asks it is gone at once, and not only when somebody does.
        threads.start(threading.Thread(target=self._child.wait, name="log probability reaper", daemon=True))

    def _ask(self, results: Sequence[Reported]) -> list[bytes | None]:
        assert self._connection is not None and self._shared is not None
        call, at = [NUMBER.pack(len(results))], 0
        for ids, num_top, records in results:
            call.append(RESULT.pack(len(ids), num_top, len(records)))
            content = array.array("i", ids).tobytes() + records
            self._shared[at : at + len(content)] = content
            at += len(content)
        self._connection.sendall(b"".join(call))
        made, at = list[bytes | None](), CALL_BYTES
        for (size,) in NUMBER.iter_unpack(receive(self._connection, NUMBER.size * len(results))):
            made.append(self._shared[at : at + size] or None)
            at += size
        return made

    def _end(self) -> None:
        self._is_ready = False
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._shared is not None:
            self._shared.close()
            self._shared = None
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None


def _size(result: Reported) -> int:
    """Its bytes in the shared memory."""
    ids, _, records = result
    return ID_BYTES * len(ids) + len(records)


def _is_worth_asking(result: Reported) -> bool:
    ids, num_top, _ = result
    return len(ids) * (1 + num_top) >= FEWEST_NUMBERS and _size(result) <= CALL_BYTES


def _that_fit(places: Sequence[int], results: Sequence[Reported]) -> Sequence[int]:
    """The first of the places, as many as go into one call together."""
    end = 0
    for number, place in enumerate(places):
        end += _size(results[place])
        if end > CALL_BYTES:
            return places[:number]
    return places


def receive(connection: socket.socket, num_bytes: int) -> bytearray:
    """Exactly so many bytes. Raises EOFError where the other side has gone, OSError where nothing comes."""
    received = bytearray(num_bytes)
    rest = memoryview(received)
    while rest:
        num_read = connection.recv_into(rest)
        if not num_read:
            raise EOFError
        rest = rest[num_read:]
    return received
