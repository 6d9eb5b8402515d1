"""The process that answers probes, by itself."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-P", "-m", "tasks.observe.health"]


def test_it_says_that_nobody_starts_it_by_hand() -> None:
    found = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 2
    assert "--listen" in found.stderr


@pytest.mark.parametrize(("content", "exit_code"), [(b"", 0), (b"\xff\xff\xff\xff", 1), (b"\0\0\0\1\xc1", 1)])
def test_it_ends_with_its_worker_and_on_what_it_cannot_read(content: bytes, exit_code: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as listener:
        fds = [listener.fileno(), theirs.fileno()]
        command = [*COMMAND, "--listen", str(fds[0]), "--source", str(fds[1])]
        with subprocess.Popen(command, pass_fds=fds) as process:
            theirs.close()
            ours.sendall(content)
            ours.shutdown(socket.SHUT_WR)
            assert process.wait(60) == exit_code
